/* SPDX-License-Identifier: MIT */
#include "cli/suggest.h"

#include <string.h>

enum { LONGEST = 40 };

static size_t
least(size_t a, size_t b, size_t c)
{
    size_t ab = a < b ? a : b;

    return ab < c ? ab : c;
}

/* Insertions, deletions, replacements and swaps of neighbours that make one of the other. */
static size_t
distance(const char *from, const char *to)
{
    size_t rows[3][LONGEST + 1];
    size_t from_length = strlen(from), to_length = strlen(to);
    size_t *before = rows[0], *above = rows[1], *row = rows[2];

    if (from_length > LONGEST || to_length > LONGEST)
        return LONGEST;
    for (size_t j = 0; j <= to_length; j++)
        above[j] = before[j] = j;
    for (size_t i = 1; i <= from_length; i++) {
        row[0] = i;
        for (size_t j = 1; j <= to_length; j++) {
            row[j] = least(above[j] + 1, row[j - 1] + 1, above[j - 1] + (from[i - 1] != to[j - 1]));
            if (i > 1 && j > 1 && from[i - 1] == to[j - 2] && from[i - 2] == to[j - 1])
                row[j] = least(row[j], before[j - 2] + 1, row[j]);
        }
        size_t *oldest = before;

        before = above;
        above = row;
        row = oldest;
    }
    return above[to_length];
}

struct suggestion
suggest_begin(const char *word)
{
    /* A third of the letters may be wrong, beyond that it is another word. */
    return (struct suggestion){.word = word, .distance = strlen(word) / 3 + 1};
}

void
suggest_offer(struct suggestion *suggestion, const char *candidate)
{
    size_t length = strlen(candidate);
    size_t found = distance(suggestion->word, candidate);

    if (length >= sizeof suggestion->best)
        return;
    /* A beginning is as good as a word with one letter wrong. */
    if (found > 1 && strlen(suggestion->word) > 2 &&
        strncmp(suggestion->word, candidate, strlen(suggestion->word)) == 0)
        found = 1;
    if (found >= suggestion->distance &&
        !(found == 1 && suggestion->distance == 1 && !suggestion->best[0]))
        return;
    suggestion->distance = found;
    memcpy(suggestion->best, candidate, length + 1);
}
