/* SPDX-License-Identifier: MIT
 *
 * --trace FILE: where the time went, in the Chrome trace format, which chrome://tracing,
 * ui.perfetto.dev and speedscope.app draw: the steps, every message to QEMU and the guest agent
 * until its reply, every file operation; microseconds.
 *
 * It is made from the library's log, kept in memory and written at the end, so that it costs the
 * frozen window next to nothing.
 */
#ifndef VF_CLI_TRACE_H
#define VF_CLI_TRACE_H

#include <stdbool.h>

#include "cli/cli.h"

/* Creates the file of --trace; false after the reason was reported. */
bool trace_open(struct cli *cli);
/* A line of the log, as it comes. */
void trace_line(struct trace *trace, const char *line);
/* Writes it; false after the reason was reported. */
bool trace_close(struct cli *cli);

#endif
