/* SPDX-License-Identifier: MIT
 *
 * What the fuzz targets share. Each fuzz-NAME.c is one target; libFuzzer feeds it (make fuzz), or
 * replay.c with what is kept in corpus/NAME (make check-fuzz).
 */
#ifndef TESTS_FUZZ_H
#define TESTS_FUZZ_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "util/cleanup.h"
#include "util/error.h"
#include "util/json.h"
#include "util/mem.h"
#include "util/text.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* What has to hold whatever the input is, in every build. */
#define MUST(condition) ((condition) ? (void)0 : fuzz_broken(__FILE__, __LINE__, #condition))

static inline void __attribute__((noreturn))
fuzz_broken(const char *file, int line, const char *condition)
{
    fprintf(stderr, "%s:%d: does not hold: %s\n", file, line, condition);
    abort();
}

/* Fit for a terminal. */
static inline bool
is_plain(const char *text)
{
    VF_AUTO_FREE char *copy = vf_strdup(text);

    vf_sanitize(copy);
    return strcmp(copy, text) == 0;
}

/* What failed says so, in words that can be shown; what did not fail has no error. */
static inline void
check_error(bool good, const struct vmfrost_error *error)
{
    MUST(good == (error->code == VMFROST_OK));
    MUST(good || *error->text);
    MUST(is_plain(error->text) && is_plain(error->next));
}

#endif
