/* SPDX-License-Identifier: MIT
 *
 * Columns for people: cells are added row by row, each column is as wide as its widest cell.
 */
#ifndef VF_CLI_TABLE_H
#define VF_CLI_TABLE_H

#include <stddef.h>

#include "cli/out.h"

#define TABLE_COLUMNS_MAX 10

struct table {
    const char *headings[TABLE_COLUMNS_MAX]; /* the first column without one ends the table */
    bool right[TABLE_COLUMNS_MAX];
    int indent;
    size_t count;
    struct table_cell {
        char *text;
        enum style style;
    } * cells;
};

void table_cell(struct table *table, enum style style, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
/* A cell of a text that may be absent. */
void table_maybe(struct table *table, enum style style, const char *text);
/* Without rows: nothing, not even the headings. */
void table_print(const struct table *table, struct out *out);
void table_release(struct table *table);

#define AUTO_TABLE VF_CLEANUP(table_release)

#endif
