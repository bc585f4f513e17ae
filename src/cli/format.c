/* SPDX-License-Identifier: MIT */
#include "cli/format.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

const char *
format_ms(double ms, char out[FORMAT_SIZE])
{
    if (!(ms >= 0) || ms > 1e13)
        snprintf(out, FORMAT_SIZE, "?");
    else if (ms < 1)
        snprintf(out, FORMAT_SIZE, "%.2f ms", ms);
    else if (ms < 999.95)
        snprintf(out, FORMAT_SIZE, "%.1f ms", ms);
    else if (ms < 59995)
        snprintf(out, FORMAT_SIZE, "%.4g s", ms / 1000);
    else if (ms < 3600e3)
        snprintf(out, FORMAT_SIZE, "%lld min %lld s", (long long)(ms / 60e3),
                 (long long)(ms / 1e3) % 60);
    else
        snprintf(out, FORMAT_SIZE, "%lld h %lld min", (long long)(ms / 3600e3),
                 (long long)(ms / 60e3) % 60);
    return out;
}

const char *
format_age(double seconds, char out[FORMAT_SIZE])
{
    if (!(seconds >= 0) || seconds > 1e12)
        snprintf(out, FORMAT_SIZE, "0 s"); /* the clock was set back */
    else if (seconds < 60)
        snprintf(out, FORMAT_SIZE, "%d s", (int)seconds);
    else if (seconds < 3600)
        snprintf(out, FORMAT_SIZE, "%d min", (int)(seconds / 60));
    else if (seconds < 2 * 86400)
        snprintf(out, FORMAT_SIZE, "%d h", (int)(seconds / 3600));
    else
        snprintf(out, FORMAT_SIZE, "%lld days", (long long)(seconds / 86400));
    return out;
}

const char *
format_size(int64_t bytes, char out[FORMAT_SIZE])
{
    static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
    double value = (double)bytes;
    size_t unit = 0;

    while (value >= 1023.95 && unit < sizeof units / sizeof *units - 1) {
        value /= 1024;
        unit++;
    }
    snprintf(out, FORMAT_SIZE, unit == 0 ? "%.0f %s" : "%.1f %s", value, units[unit]);
    return out;
}

const char *
format_count(int64_t count, const char *noun, char out[FORMAT_SIZE])
{
    snprintf(out, FORMAT_SIZE, "%lld %s%s", (long long)count, noun, count == 1 ? "" : "s");
    return out;
}

bool
parse_time(const char *text, double *seconds_r)
{
    struct tm parts = {.tm_isdst = 0};
    char *fraction = strptime(text, "%Y-%m-%dT%H:%M:%S", &parts);

    if (!fraction)
        return false;
    double part = *fraction == '.' ? strtod(fraction, &fraction) : 0;

    if (strcmp(fraction, "Z") != 0)
        return false;
    *seconds_r = (double)timegm(&parts) + part;
    return true;
}

static double
clock_of(clockid_t id)
{
    struct timespec now;

    clock_gettime(id, &now);
    return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

double
time_now(void)
{
    return clock_of(CLOCK_REALTIME);
}

double
time_monotonic(void)
{
    return clock_of(CLOCK_MONOTONIC);
}
