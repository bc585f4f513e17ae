/* SPDX-License-Identifier: MIT */
#include "cli/table.h"

#include <assert.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include "util/cleanup.h"
#include "util/mem.h"
#include "util/text.h"

static void
add(struct table *table, enum style style, char *text)
{
    vf_sanitize(text); /* here already: the widths are those of what will be printed */
    VF_GROW(table->cells, table->count);
    table->cells[table->count++] = (struct table_cell){.text = text, .style = style};
}

void
table_cell(struct table *table, enum style style, const char *format, ...)
{
    va_list arguments;
    char *text;

    va_start(arguments, format);
    int length = vasprintf(&text, format, arguments);
    va_end(arguments);
    if (length < 0)
        abort();
    add(table, style, text);
}

void
table_maybe(struct table *table, enum style style, const char *text)
{
    add(table, text ? style : STYLE_DIM, vf_strdup(text ? text : "-"));
}

static size_t
columns_of(const struct table *table)
{
    size_t columns = 0;

    while (columns < TABLE_COLUMNS_MAX && table->headings[columns])
        columns++;
    return columns;
}

static void
print_cell(const struct table *table, struct out *out, size_t column, size_t width, bool last,
           enum style style, const char *text)
{
    size_t used = out_width(out, text);
    int padding = width > used ? (int)(width - used) : 0;

    if (column > 0)
        out_raw(out, "  ");
    if (table->right[column])
        out_text(out, STYLE_PLAIN, "%*s", padding, "");
    if (*text)
        out_text(out, style, "%s", text);
    if (!table->right[column] && !last)
        out_text(out, STYLE_PLAIN, "%*s", padding, "");
    if (last)
        out_raw(out, "\n");
}

/* Nothing is printed for empty cells at its end. */
static void
print_row(const struct table *table, struct out *out, const size_t *widths,
          const struct table_cell *cells, size_t count)
{
    while (count > 1 && !*cells[count - 1].text)
        count--;
    out_text(out, STYLE_PLAIN, "%*s", table->indent, "");
    for (size_t i = 0; i < count; i++)
        print_cell(table, out, i, widths[i], i + 1 == count, cells[i].style, cells[i].text);
}

void
table_print(const struct table *table, struct out *out)
{
    size_t columns = columns_of(table);
    size_t widths[TABLE_COLUMNS_MAX] = {0};

    if (table->count == 0)
        return;
    assert(columns > 0);
    for (size_t i = 0; i < columns; i++)
        widths[i] = out_width(out, table->headings[i]);
    for (size_t i = 0; i < table->count; i++) {
        size_t width = out_width(out, table->cells[i].text);

        if (width > widths[i % columns])
            widths[i % columns] = width;
    }
    struct table_cell headings[TABLE_COLUMNS_MAX] = {{NULL, STYLE_PLAIN}};

    for (size_t i = 0; i < columns; i++)
        headings[i] = (struct table_cell){(char *)table->headings[i], STYLE_BOLD};
    print_row(table, out, widths, headings, columns);
    for (size_t i = 0; i + columns <= table->count; i += columns)
        print_row(table, out, widths, table->cells + i, columns);
}

void
table_release(struct table *table)
{
    for (size_t i = 0; i < table->count; i++)
        free(table->cells[i].text);
    free(VF_STEAL(table->cells));
    table->count = 0;
}
