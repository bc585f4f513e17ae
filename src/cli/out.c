/* SPDX-License-Identifier: MIT */
#include "cli/out.h"

#include <errno.h>
#include <langinfo.h>
#include <limits.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>
#include <wchar.h>

#include "util/cleanup.h"
#include "util/mem.h"
#include "util/text.h"

static void
on_writable(struct ev_loop *loop, ev_io *watcher, int revents)
{
    struct out *out = watcher->data;

    (void)loop;
    (void)revents;
    out_flush(out);
}

void
out_init(struct out *out, int fd)
{
    const char *term = getenv("TERM");
    const char *no_color = getenv("NO_COLOR");

    memset(out, 0, sizeof *out);
    out->fd = fd;
    out->terminal = isatty(fd);
    out->color = out->terminal && term && strcmp(term, "dumb") != 0 && !(no_color && *no_color);
    out->utf8 = strcmp(nl_langinfo(CODESET), "UTF-8") == 0;
    ev_io_init(&out->retry, on_writable, fd, EV_WRITE);
    out->retry.data = out;
}

void
out_no_color(struct out *out)
{
    out->color = false;
}

void
out_attach(struct out *out, struct ev_loop *loop)
{
    out->loop = loop;
}

void
out_detach(struct out *out)
{
    if (out->loop)
        ev_io_stop(out->loop, &out->retry);
    out->loop = NULL;
}

static void
append(struct out *out, const char *data, size_t length)
{
    if (out->error || length == 0)
        return;
    if (out->start == out->length)
        out->start = out->length = 0;
    if (out->length + length > out->capacity) {
        out->capacity = (out->length + length) * 2;
        out->data = vf_realloc(out->data, out->capacity);
    }
    memcpy(out->data + out->length, data, length);
    out->length += length;
}

static bool
writable(const struct out *out, int timeout_ms)
{
    struct pollfd poller = {.fd = out->fd, .events = POLLOUT};

    return poll(&poller, 1, timeout_ms) > 0;
}

/* Nothing is left, or what is left would have to wait. */
static void
drain(struct out *out, bool wait)
{
    while (out->start < out->length && !out->error) {
        size_t length = out->length - out->start;

        /* A pipe or a terminal that is ready takes this much without blocking, no more. */
        if (!wait && length > PIPE_BUF)
            length = PIPE_BUF;
        if (!writable(out, wait ? -1 : 0)) {
            if (wait)
                continue;
            return;
        }
        ssize_t written = write(out->fd, out->data + out->start, length);
        if (written >= 0)
            out->start += (size_t)written;
        else if (errno != EINTR && errno != EAGAIN)
            out->error = errno;
        else if (!wait)
            return;
    }
    out->start = out->length = 0;
}

void
out_flush(struct out *out)
{
    drain(out, !out->loop);
    if (!out->loop)
        return;
    if (out->start < out->length)
        ev_io_start(out->loop, &out->retry);
    else
        ev_io_stop(out->loop, &out->retry);
}

bool
out_finish(struct out *out)
{
    drain(out, true);
    return !out->error;
}

void
out_release(struct out *out)
{
    out_detach(out);
    free(VF_STEAL(out->data));
}

static const char *
code_of(enum style style)
{
    switch (style) {
    case STYLE_PLAIN:
        return "";
    case STYLE_BOLD:
        return "\033[1m";
    case STYLE_DIM:
        return "\033[2m";
    case STYLE_GOOD:
        return "\033[32m";
    case STYLE_WARN:
        return "\033[33m";
    case STYLE_BAD:
        return "\033[31m";
    case STYLE_HINT:
        return "\033[36m";
    case STYLE_ALARM:
        return "\033[1;31m";
    }
    return "";
}

void
out_raw(struct out *out, const char *text)
{
    append(out, text, strlen(text));
}

/* A terminal without UTF-8 would show each byte as a character of its own. */
static void
make_safe(const struct out *out, char *text)
{
    vf_sanitize(text);
    if (!out->terminal || out->utf8)
        return;
    for (; *text; text++) {
        if ((unsigned char)*text >= 0x80)
            *text = '?';
    }
}

void
out_text(struct out *out, enum style style, const char *format, ...)
{
    VF_AUTO_FREE char *text = NULL;
    bool ends_line = vf_ends_with(format, "\n");
    bool colored = out->color && style != STYLE_PLAIN;
    va_list arguments;

    va_start(arguments, format);
    int length = vasprintf(&text, format, arguments);
    va_end(arguments);
    if (length < 0)
        abort();
    if (ends_line)
        text[length - 1] = '\0';
    make_safe(out, text);
    if (colored)
        out_raw(out, code_of(style));
    out_raw(out, text);
    if (colored)
        out_raw(out, "\033[0m");
    if (ends_line)
        out_raw(out, "\n");
}

void
out_lines(struct out *out, const char *text)
{
    if (!out->terminal) {
        out_raw(out, text);
        return;
    }
    VF_AUTO_FREE char *copy = vf_strdup(text);
    char *rest = copy;

    for (;;) {
        char *line = strsep(&rest, "\n");

        make_safe(out, line);
        out_raw(out, line);
        if (!rest)
            return;
        out_raw(out, "\n");
    }
}

size_t
out_columns(const struct out *out)
{
    struct winsize size;

    if (!out->terminal || ioctl(out->fd, TIOCGWINSZ, &size) < 0 || size.ws_col == 0)
        return 80;
    return size.ws_col;
}

size_t
out_width(const struct out *out, const char *text)
{
    size_t width = 0;
    mbstate_t state;

    if (!out->utf8)
        return strlen(text);
    memset(&state, 0, sizeof state);
    while (*text) {
        wchar_t character;
        size_t length = mbrtowc(&character, text, MB_CUR_MAX, &state);

        if (length == (size_t)-1 || length == (size_t)-2) {
            memset(&state, 0, sizeof state);
            width++;
            text++;
            continue;
        }
        int columns = wcwidth(character);
        width += columns > 0 ? (size_t)columns : 0;
        text += length;
    }
    return width;
}
