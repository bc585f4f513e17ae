/* SPDX-License-Identifier: MIT */
#include "util/text.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>

/* Length of the valid UTF-8 sequence at `at` that is printable, or 0. */
static size_t
printable(const unsigned char *at)
{
    if (at[0] >= 0x20 && at[0] < 0x7f)
        return 1;
    if (at[0] >= 0xc2 && at[0] <= 0xdf && (at[1] & 0xc0) == 0x80)
        return at[0] == 0xc2 && at[1] < 0xa0 ? 0 : 2; /* U+0080..U+009F are C1 controls */
    if (at[0] >= 0xe0 && at[0] <= 0xef && (at[1] & 0xc0) == 0x80 && (at[2] & 0xc0) == 0x80) {
        unsigned code = (at[0] & 0xfU) << 12 | (at[1] & 0x3fU) << 6 | (at[2] & 0x3fU);
        bool bidi = (code >= 0x200b && code <= 0x200f) || (code >= 0x2028 && code <= 0x202e) ||
                    (code >= 0x2066 && code <= 0x2069);

        return code < 0x800 || (code >= 0xd800 && code <= 0xdfff) || bidi ? 0 : 3;
    }
    if (at[0] >= 0xf0 && at[0] <= 0xf4 && (at[1] & 0xc0) == 0x80 && (at[2] & 0xc0) == 0x80 &&
        (at[3] & 0xc0) == 0x80) {
        unsigned code =
            (at[0] & 7U) << 18 | (at[1] & 0x3fU) << 12 | (at[2] & 0x3fU) << 6 | (at[3] & 0x3fU);

        return code >= 0x10000 && code < 0xe0000 ? 4 : 0;
    }
    return 0;
}

void
vf_sanitize(char *text)
{
    unsigned char *at = (unsigned char *)text;

    while (*at) {
        size_t length = printable(at);

        if (length == 0) {
            *at = '?';
            length = 1;
        }
        at += length;
    }
}

bool
vf_starts_with(const char *text, const char *start)
{
    return strncmp(text, start, strlen(start)) == 0;
}

bool
vf_ends_with(const char *text, const char *end)
{
    size_t text_length = strlen(text), end_length = strlen(end);

    return text_length >= end_length && strcmp(text + text_length - end_length, end) == 0;
}

bool
vf_parse_duration_ms(const char *text, int64_t *ms_r)
{
    static const struct {
        const char *unit;
        int64_t ms;
    } units[] = {{"ms", 1}, {"s", 1000}, {"m", 60000}, {"h", 3600000}, {"d", 86400000}};
    const int64_t most = INT64_C(366) * 86400000;
    int64_t total = 0;

    if (!*text)
        return false;
    while (*text) {
        if (*text < '0' || *text > '9')
            return false;
        char *end;
        unsigned long long number = strtoull(text, &end, 10);
        int64_t unit_ms = 0;
        size_t length = strspn(end, "dhms");

        if (number > (unsigned long long)most)
            return false;
        for (size_t i = 0; i < sizeof units / sizeof *units; i++)
            if (strlen(units[i].unit) == length && strncmp(units[i].unit, end, length) == 0)
                unit_ms = units[i].ms;
        if (length == 0 && !*end && total == 0)
            unit_ms = 1000;
        if (unit_ms == 0 || (int64_t)number > most / unit_ms)
            return false;
        total += (int64_t)number * unit_ms;
        if (total > most)
            return false;
        text = end + length;
    }
    *ms_r = total;
    return true;
}

bool
vf_parse_size(const char *text, int64_t *bytes_r)
{
    static const char units[] = "KMGTPEkmgtpe";
    char *end;

    if (*text < '0' || *text > '9')
        return false;
    errno = 0;
    unsigned long long number = strtoull(text, &end, 10);
    const char *unit = *end ? strchr(units, *end) : NULL;
    int bits = unit ? 10 * (int)((unit - units) % 6 + 1) : 0;

    end += unit != NULL;
    if (unit && strcmp(end, "iB") == 0)
        end += 2;
    if (errno || *end || number > (unsigned long long)INT64_MAX >> bits)
        return false;
    *bytes_r = (int64_t)(number << bits);
    return true;
}

/* `count` digits at `*at`, which moves behind them; -1 if they are not there. */
static int
digits(const char **at, int count)
{
    int value = 0;

    for (int i = 0; i < count; i++, (*at)++) {
        if (**at < '0' || **at > '9')
            return -1;
        value = 10 * value + (**at - '0');
    }
    return value;
}

static bool
skip(const char **at, char wanted)
{
    return **at == wanted && *(*at)++;
}

bool
vf_parse_time_ms(const char *text, int64_t *ms_r)
{
    const char *at = text;
    struct tm parts = {.tm_isdst = 0};
    int64_t ms = 0;

    parts.tm_year = digits(&at, 4) - 1900;
    bool good = skip(&at, '-');
    parts.tm_mon = good ? digits(&at, 2) - 1 : -1;
    good = good && skip(&at, '-');
    parts.tm_mday = good ? digits(&at, 2) : -1;
    good = good && skip(&at, 'T');
    parts.tm_hour = good ? digits(&at, 2) : -1;
    good = good && skip(&at, ':');
    parts.tm_min = good ? digits(&at, 2) : -1;
    good = good && skip(&at, ':');
    parts.tm_sec = good ? digits(&at, 2) : -1;
    if (!good || parts.tm_hour < 0 || parts.tm_min < 0 || parts.tm_sec < 0)
        return false;
    if (skip(&at, '.')) {
        if (*at < '0' || *at > '9')
            return false;
        for (int unit = 100; *at >= '0' && *at <= '9'; at++, unit /= 10)
            ms += (*at - '0') * unit;
    }
    struct tm given = parts;
    int64_t seconds = timegm(&parts);

    /* timegm() makes the 1st of March of a 30th of February, and year -1901 of no digits. */
    if (strcmp(at, "Z") != 0 || given.tm_year < 70 || parts.tm_year != given.tm_year ||
        parts.tm_mon != given.tm_mon || parts.tm_mday != given.tm_mday ||
        parts.tm_hour != given.tm_hour || parts.tm_min != given.tm_min ||
        parts.tm_sec != given.tm_sec)
        return false;
    *ms_r = 1000 * seconds + ms;
    return true;
}

bool
vf_parse_count(const char *text, int64_t *count_r)
{
    size_t length = strspn(text, "0123456789");

    if (length == 0 || length > 7 || text[length])
        return false;
    long count = strtol(text, NULL, 10);

    if (count < 1 || count > 1000000)
        return false;
    *count_r = count;
    return true;
}

bool
vf_valid_name(const char *name)
{
    size_t length =
        strspn(name, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._+-");

    return length > 0 && length <= 64 && !name[length] && name[0] != '.' && name[0] != '-';
}

void
vf_random_hex(char out[17])
{
    static const char digits[] = "0123456789abcdef";
    unsigned char bytes[8];

    /* Up to 256 bytes come whole once the kernel's pool is ready. */
    while (getrandom(bytes, sizeof bytes, 0) != sizeof bytes)
        continue;
    for (size_t i = 0; i < sizeof bytes; i++) {
        out[2 * i] = digits[bytes[i] >> 4];
        out[2 * i + 1] = digits[bytes[i] & 15];
    }
    out[16] = '\0';
}

uint64_t
vf_hash(const char *text)
{
    uint64_t hash = UINT64_C(0xcbf29ce484222325);

    for (; *text; text++)
        hash = (hash ^ (unsigned char)*text) * UINT64_C(0x100000001b3);
    return hash;
}
