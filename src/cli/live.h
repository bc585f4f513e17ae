/* SPDX-License-Identifier: MIT
 *
 * The lines that grow while an operation runs, on stderr.
 *
 * On a terminal the running step has a line of its own, which is redrawn in place and becomes the
 * line of the finished step. Elsewhere, and with -v, each finished step is one plain line, and only
 * with -v; a long one has a line for each tenth of it, too. Steps that there was no need for are
 * told with -v only. Nothing is drawn by a clock, only when
 * the library tells a step: in the frozen window nothing but freeze, cut and thaw may happen.
 */
#ifndef VF_CLI_LIVE_H
#define VF_CLI_LIVE_H

#include <stdbool.h>

#include "cli/out.h"
#include "vmfrost.h"

struct live {
    struct out *err;
    bool redraws; /* a terminal that can move its cursor */
    bool tells;   /* finished steps are told */
    bool skips;   /* ... and those that there was no need for */
    bool drawn;   /* the running step's line stands on the terminal, without a newline */
    char *step;   /* that runs; NULL: none */
    double started_ms, drawn_ms, event_ms;
    double first_percent, first_ms; /* what was told first of its progress; negative: nothing */
    int tenths;                     /* of the step, that were told */
};

/* `several`: operations run side by side, so that there is no one running step. */
void live_init(struct live *live, struct out *err, bool verbose, bool silent, bool several);
void live_event(struct live *live, const char *vm, const struct vmfrost_event *event);
/* Clears the running step's line, so that something else can be printed. NULL is allowed. */
void live_pause(struct live *live);
void live_release(struct live *live);

#endif
