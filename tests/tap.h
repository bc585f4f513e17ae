/* SPDX-License-Identifier: MIT
 *
 * The Test Anything Protocol for plain C programs: one process a file, run by prove(1).
 *
 *     int main(void)
 *     {
 *         ok(1 + 1 == 2, "one and one");
 *         is_int(6 * 7, 42, "six by seven");
 *         return done_testing();
 *     }
 */
#ifndef TESTS_TAP_H
#define TESTS_TAP_H

#include <errno.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int tap_count, tap_failures;
static bool tap_aloud; /* about a failure, and prove listens, which keeps stdout to itself */

static inline bool __attribute__((format(printf, 2, 3))) ok(bool passed, const char *format, ...)
{
    char name[1024];
    va_list arguments;

    va_start(arguments, format);
    vsnprintf(name, sizeof name, format, arguments);
    va_end(arguments);
    tap_count++;
    tap_failures += !passed;
    tap_aloud = !passed && getenv("HARNESS_ACTIVE");
    printf("%sok %d - %s\n", passed ? "" : "not ", tap_count, name);
    fflush(stdout);
    if (tap_aloud)
        fprintf(stderr, "# %s: not ok %d - %s\n", program_invocation_short_name, tap_count, name);
    return passed;
}

static inline void __attribute__((format(printf, 1, 2))) diag(const char *format, ...)
{
    char text[16384];
    va_list arguments;

    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    printf("# %s\n", text);
    fflush(stdout);
    if (tap_aloud)
        fprintf(stderr, "#   %s\n", text);
}

static inline bool
is_int(long long got, long long wanted, const char *what)
{
    if (!ok(got == wanted, "%s", what))
        diag("got %lld, wanted %lld", got, wanted);
    return got == wanted;
}

/* NULL equals only NULL. */
static inline bool
is_str(const char *got, const char *wanted, const char *what)
{
    bool same = got && wanted ? strcmp(got, wanted) == 0 : got == wanted;

    if (!ok(same, "%s", what))
        diag("got \"%s\", wanted \"%s\"", got ? got : "(null)", wanted ? wanted : "(null)");
    return same;
}

/* `part` stands in `whole`. */
static inline bool
has_str(const char *whole, const char *part, const char *what)
{
    bool found = whole && strstr(whole, part);

    if (!ok(found, "%s", what))
        diag("\"%s\" does not hold \"%s\"", whole ? whole : "(null)", part);
    return found;
}

static inline int
done_testing(void)
{
    printf("1..%d\n", tap_count);
    return tap_failures ? EXIT_FAILURE : EXIT_SUCCESS;
}

#endif
