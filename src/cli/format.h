/* SPDX-License-Identifier: MIT
 *
 * Numbers for people: durations, ages, sizes, times. All pure; a buffer of FORMAT_SIZE bytes is
 * always large enough, and is returned.
 */
#ifndef VF_CLI_FORMAT_H
#define VF_CLI_FORMAT_H

#include <stdbool.h>
#include <stdint.h>

#define FORMAT_SIZE 40

const char *format_ms(double ms, char out[FORMAT_SIZE]);       /* "41.2 ms", "2 min 5 s" */
const char *format_age(double seconds, char out[FORMAT_SIZE]); /* "3 min", "2 days" */
const char *format_size(int64_t bytes, char out[FORMAT_SIZE]); /* "10.0 GiB" */
/* "3 file systems", "1 disk". */
const char *format_count(int64_t count, const char *noun, char out[FORMAT_SIZE]);

/* Seconds since 1970 of "2026-01-31T23:59:59.123456Z"; false if it is none. */
bool parse_time(const char *text, double *seconds_r);
double time_now(void);
double time_monotonic(void);

#endif
