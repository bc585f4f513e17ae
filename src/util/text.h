/* SPDX-License-Identifier: MIT
 *
 * Text from outside, made safe to print, and small conversions.
 */
#ifndef VF_UTIL_TEXT_H
#define VF_UTIL_TEXT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Replaces, in place, everything that a terminal could act on by '?': control
 * characters, DEL, C1 controls and bytes that are not valid UTF-8. */
void vf_sanitize(char *text);

bool vf_starts_with(const char *text, const char *start);
bool vf_ends_with(const char *text, const char *end);

/* "1h30m", "5m", "2s", "250ms", "300" (seconds) to milliseconds; false if it is
 * none of these, negative, or more than a year. */
bool vf_parse_duration_ms(const char *text, int64_t *ms_r);

/* "1" to "1000000", in digits alone. */
bool vf_parse_count(const char *text, int64_t *count_r);

/* "2026-01-31T23:59:59.123456Z" (RFC 3339, UTC), with or without a fraction, and nothing else: to
 * milliseconds since 1970. */
bool vf_parse_time_ms(const char *text, int64_t *ms_r);

/* "64k", "512MiB", "10G", "65536" (bytes) to bytes, in units of 1024; false if it is none of these
 * or more than 8 EiB. */
bool vf_parse_size(const char *text, int64_t *bytes_r);

/* A name of a VM or a snapshot: 1 to 64 of A-Z a-z 0-9 . _ + -, and neither a dot
 * nor a dash first. Names become file names, so that nothing else is let in. */
bool vf_valid_name(const char *name);

/* 16 hex digits from the kernel's random numbers, and their terminating NUL. */
void vf_random_hex(char out[17]);

/* 64-bit FNV-1a: for names derived from paths, never for security. */
uint64_t vf_hash(const char *text);

#endif
