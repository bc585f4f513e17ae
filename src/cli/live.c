/* SPDX-License-Identifier: MIT */
#include "cli/live.h"

#include <stdlib.h>
#include <string.h>

#include "cli/format.h"
#include "util/cleanup.h"
#include "util/mem.h"
#include "util/text.h"

/* With a bar and what is left, 80 columns are filled. */
enum { TITLE_WIDTH = 40, BAR_TITLE_WIDTH = 28, BAR_WIDTH = 24 };

void
live_init(struct live *live, struct out *err, bool verbose, bool silent, bool several)
{
    const char *term = getenv("TERM");
    bool moves = err->terminal && term && strcmp(term, "dumb") != 0;

    *live = (struct live){
        .err = err,
        .redraws = moves && !verbose && !silent && !several,
        .skips = verbose,
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

/* The title in its column, with its VM if there are several. One that is longer is cut where the
 * line may not wrap. */
static void
put_title(struct live *live, const char *vm, const char *title, int columns, bool cut)
{
    VF_AUTO_FREE char *text = vm ? vf_printf("%s: %s", vm, title) : vf_strdup(title);

    vf_sanitize(text);
    int width = (int)out_width(live->err, text);

    if (cut && width > columns) /* cut in bytes: a half character is made a '?' */
        out_text(live->err, STYLE_PLAIN, "%.*s", columns, text);
    else
        out_text(live->err, STYLE_PLAIN, "%s%*s", text, width < columns ? columns - width : 0, "");
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
    out_text(err, STYLE_PLAIN, "%s %3d %%", err->utf8 ? "" : "]", (int)percent);
}

/* How long the rest takes, if it goes on as it did since its progress was told first: a merge that
 * goes on where an earlier one was stopped does not begin at nothing. */
static void
put_left(struct live *live, const struct vmfrost_event *event, size_t room)
{
    double passed_ms = event->elapsed_ms - live->first_ms;
    double moved = event->percent - live->first_percent;
    char left[FORMAT_SIZE];

    if (moved < 1 || passed_ms < 2000)
        return;
    format_age(passed_ms / 1000 * (100 - event->percent) / moved + 1, left);
    if (strlen(left) + strlen(", ") + strlen(" left") <= room)
        out_text(live->err, STYLE_DIM, ", %s left", left);
}

static void
draw_running(struct live *live, const struct vmfrost_event *event)
{
    const size_t percent_width = strlen(" 100 %"), mark_width = strlen("  ~ ");
    const size_t bar_width =
        mark_width + BAR_TITLE_WIDTH + BAR_WIDTH + strlen(" []") + percent_width;
    struct out *err = live->err;
    size_t columns = out_columns(err);
    bool known = event->percent >= 0;

    live_pause(live);
    if (columns < 20)
        return; /* a line that wraps could not be redrawn */
    out_text(err, STYLE_HINT, "  %s ", err->utf8 ? "…" : "~");
    if (known && columns > bar_width) {
        put_title(live, NULL, event->title, BAR_TITLE_WIDTH, true);
        put_bar(err, event->percent);
        put_left(live, event, columns - bar_width - 1);
    } else {
        size_t rest = columns - 1 - mark_width - (known ? percent_width : 0);

        put_title(live, NULL, event->title, rest < TITLE_WIDTH ? (int)rest : TITLE_WIDTH, true);
        if (known)
            out_text(err, STYLE_PLAIN, " %3d %%", (int)event->percent);
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
    put_title(live, vm, event->title, TITLE_WIDTH, false);
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

static void
tell_tenth(struct live *live, const char *vm, const struct vmfrost_event *event)
{
    int tenths = (int)(event->percent / 10);

    if (tenths <= live->tenths)
        return;
    live->tenths = tenths;
    out_text(live->err, STYLE_DIM, "  %s ", live->err->utf8 ? "…" : "~");
    put_title(live, vm, event->title, TITLE_WIDTH, false);
    out_text(live->err, STYLE_DIM, " %8d %%\n", tenths * 10);
}

/* The percents of a bar are 0 to 100, whoever tells them. */
static void
progress(struct live *live, const char *vm, const struct vmfrost_event *told)
{
    /* Faster than this, nobody can read it. */
    const double redraw_ms = 50;
    struct vmfrost_event event = *told;

    if (!(event.percent >= 0))
        event.percent = 0;
    if (event.percent > 100)
        event.percent = 100;
    if (live->first_percent < 0) {
        live->first_percent = event.percent;
        live->first_ms = event.elapsed_ms;
    }
    if (!live->redraws)
        tell_tenth(live, vm, &event);
    else if (!live->drawn || event.elapsed_ms - live->drawn_ms >= redraw_ms)
        draw_running(live, &event);
}

void
live_event(struct live *live, const char *vm, const struct vmfrost_event *event)
{
    static const char *const endings[] = {"done", "refused", "unknown", "skipped"};

    if (!live->tells)
        return;
    if (strcmp(event->state, "started") == 0) {
        free(live->step);
        live->step = vf_strdup(event->step);
        live->started_ms = event->elapsed_ms;
        live->first_percent = -1;
        live->tenths = 0;
        if (live->redraws)
            draw_running(live, event);
    } else if (strcmp(event->state, "progress") == 0) {
        progress(live, vm, event);
    }
    for (size_t i = 0; i < sizeof endings / sizeof *endings; i++) {
        if (strcmp(event->state, endings[i]) != 0)
            continue;
        live_pause(live);
        if (i != ENDING_SKIPPED || live->skips)
            tell_finished(live, vm, event, (enum ending)i);
        free(VF_STEAL(live->step));
        live->event_ms = event->elapsed_ms;
    }
    out_flush(live->err);
}
