/* SPDX-License-Identifier: MIT
 *
 * "Did you mean": the most similar of the words that were offered.
 */
#ifndef VF_CLI_SUGGEST_H
#define VF_CLI_SUGGEST_H

#include <stddef.h>

struct suggestion {
    const char *word;
    char best[64]; /* "": nothing was similar enough */
    size_t distance;
};

struct suggestion suggest_begin(const char *word);
void suggest_offer(struct suggestion *suggestion, const char *candidate);

#endif
