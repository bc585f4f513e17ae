/* SPDX-License-Identifier: MIT
 *
 * Output that neither blocks the loop nor lets a guest talk to the terminal.
 *
 * Guarantees: while a loop is attached, nothing waits for a reader: a terminal that was stopped
 * with Ctrl-S or a full pipe must not hold up a thaw. What cannot be written yet is kept, and
 * out_finish() waits for it at the end. out_text() is safe with any argument: whatever a terminal
 * could act on is replaced, newlines too, but for one at the end of the format itself.
 */
#ifndef VF_CLI_OUT_H
#define VF_CLI_OUT_H

#include <ev.h>
#include <stdbool.h>
#include <stddef.h>

enum style {
    STYLE_PLAIN,
    STYLE_BOLD,
    STYLE_DIM,
    STYLE_GOOD,
    STYLE_WARN,
    STYLE_BAD,
    STYLE_HINT,
    STYLE_ALARM,
};

struct out {
    int fd;
    bool terminal;
    bool color;
    bool utf8; /* characters outside ASCII may be printed */
    int error; /* errno of the write that failed: nothing more is written */
    char *data;
    size_t start, length, capacity;
    struct ev_loop *loop; /* NULL: not attached */
    ev_io retry;
};

void out_init(struct out *out, int fd);
void out_no_color(struct out *out);

/* While it is attached, writing never waits. */
void out_attach(struct out *out, struct ev_loop *loop);
void out_detach(struct out *out);

/* Literals of our own, with escapes and newlines as they are. */
void out_raw(struct out *out, const char *text);
void out_text(struct out *out, enum style style, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
/* A text of several lines that was made elsewhere (JSON): sanitized, but for its newlines, if it
 * goes to a terminal. */
void out_lines(struct out *out, const char *text);

/* Writes what can be written without waiting, unless nothing is attached: then all. */
void out_flush(struct out *out);
/* Writes all of it, however long that takes. False, with errno in out->error, if that failed. */
bool out_finish(struct out *out);
void out_release(struct out *out);

/* Columns of the terminal, 80 if that is not known. */
size_t out_columns(const struct out *out);
/* Columns that a sanitized text takes. */
size_t out_width(const struct out *out, const char *text);

#endif
