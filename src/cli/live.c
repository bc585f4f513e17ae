/* SPDX-License-Identifier: MIT */
#include "cli/live.h"

#include <stdlib.h>
#include <string.h>

#include "cli/format.h"
#include "util/cleanup.h"
#include "util/mem.h"
#include "util/text.h"

enum { TITLE_WIDTH = 40, BAR_WIDTH = 24 };

void
live_init(struct live *live, struct out *err, bool verbose, bool silent, bool several)
{
    const char *term = getenv("TERM");
    bool moves = err->terminal && term && strcmp(term, "dumb") != 0;

    *live = (struct live){
        .err = err,
        .redraws = moves && !verbose && !silent && !several,
        .tells = (moves || verbose) && !silent,
    };
}

void
live_pause(struct live *live)
{
    if (!live || !live->drawn)
        return;
    out_raw(live->err, "\r\033[K");
    live->drawn = false;
}

void
live_release(struct live *live)
{
    live_pause(live);
    free(VF_STEAL(live->step));
}

/* The title in its column, with its VM if there are several. */
static void
put_title(struct live *live, const char *vm, const char *title, int columns)
{
    VF_AUTO_FREE char *text = vm ? vf_printf("%s: %s", vm, title) : vf_strdup(title);

    vf_sanitize(text);
    int width = (int)out_width(live->err, text);

    if (width > columns) /* cut in bytes: a half character is made a '?' */
        out_text(live->err, STYLE_PLAIN, "%.*s", columns, text);
    else
        out_text(live->err, STYLE_PLAIN, "%s%*s", text, columns - width, "");
}

static void
put_bar(struct out *err, double percent)
{
    static const char *const marks[2][2] = {{".", "#"}, {"─", "━"}};
    int filled = (int)(percent / 100 * BAR_WIDTH);
    char parts[2][BAR_WIDTH * sizeof "━"];
    char *ends[2] = {parts[0], parts[1]};

    parts[0][0] = parts[1][0] = '\0';
    for (int i = 0; i < BAR_WIDTH; i++) {
        int part = i < filled;

        ends[part] = stpcpy(ends[part], marks[err->utf8][part]);
    }
    out_raw(err, err->utf8 ? " " : " [");
    out_text(err, STYLE_GOOD, "%s", parts[1]);
    out_text(err, STYLE_DIM, "%s", parts[0]);
    out_text(err, STYLE_PLAIN, "%s %3.0f %%", err->utf8 ? "" : "]", percent);
}

static void
draw_running(struct live *live, const struct vmfrost_event *event)
{
    double passed_ms = event->elapsed_ms - live->started_ms;
    struct out *err = live->err;
    size_t columns = out_columns(err);
    char left[FORMAT_SIZE];

    live_pause(live);
    if (columns < 20)
        return; /* a line that wraps could not be redrawn */
    out_text(err, STYLE_HINT, "  %s ", err->utf8 ? "…" : "~");
    put_title(live, NULL, event->title, columns < 80 ? (int)columns - 5 : TITLE_WIDTH);
    if (event->percent >= 0 && columns >= 80) {
        double percent = event->percent > 100 ? 100 : event->percent;

        put_bar(err, percent);
        if (percent >= 5 && passed_ms > 2000)
            out_text(err, STYLE_DIM, " %s left",
                     format_age(passed_ms / 1000 * (100 - percent) / percent, left));
    }
    live->drawn = true;
    live->drawn_ms = event->elapsed_ms;
}

enum ending { ENDING_DONE, ENDING_REFUSED, ENDING_UNKNOWN, ENDING_SKIPPED };

static void
put_ending(struct out *err, enum ending ending)
{
    switch (ending) {
    case ENDING_DONE:
        out_text(err, STYLE_GOOD, "  %s ", err->utf8 ? "✓" : "+");
        return;
    case ENDING_REFUSED:
        out_text(err, STYLE_BAD, "  %s ", err->utf8 ? "✗" : "x");
        return;
    case ENDING_UNKNOWN:
        out_text(err, STYLE_WARN, "  ? ");
        return;
    case ENDING_SKIPPED:
        out_text(err, STYLE_DIM, "  - ");
        return;
    }
}

static void
tell_finished(struct live *live, const char *vm, const struct vmfrost_event *event,
              enum ending ending)
{
    /* Steps of several operations interleave: only "started" of the same step gives a duration. */
    bool known = live->step && strcmp(live->step, event->step) == 0;
    double from_ms = known ? live->started_ms : live->event_ms;
    char duration[FORMAT_SIZE];

    put_ending(live->err, ending);
    put_title(live, vm, event->title, TITLE_WIDTH);
    if (ending == ENDING_SKIPPED)
        out_text(live->err, STYLE_DIM, " %10s", "skipped");
    else
        out_text(live->err, STYLE_DIM, " %10s", format_ms(event->elapsed_ms - from_ms, duration));
    if (ending == ENDING_REFUSED)
        out_text(live->err, STYLE_BAD, "  refused");
    if (ending == ENDING_UNKNOWN)
        out_text(live->err, STYLE_WARN, "  no answer");
    out_raw(live->err, "\n");
}

void
live_event(struct live *live, const char *vm, const struct vmfrost_event *event)
{
    static const char *const endings[] = {"done", "refused", "unknown", "skipped"};
    /* Faster than this, nobody can read it. */
    const double redraw_ms = 50;

    if (!live->tells)
        return;
    if (strcmp(event->state, "started") == 0) {
        free(live->step);
        live->step = vf_strdup(event->step);
        live->started_ms = event->elapsed_ms;
        if (live->redraws)
            draw_running(live, event);
    } else if (strcmp(event->state, "progress") == 0) {
        if (live->redraws && (!live->drawn || event->elapsed_ms - live->drawn_ms >= redraw_ms))
            draw_running(live, event);
    }
    for (size_t i = 0; i < sizeof endings / sizeof *endings; i++) {
        if (strcmp(event->state, endings[i]) != 0)
            continue;
        live_pause(live);
        tell_finished(live, vm, event, (enum ending)i);
        free(VF_STEAL(live->step));
        live->event_ms = event->elapsed_ms;
    }
    out_flush(live->err);
}
