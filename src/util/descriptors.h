/* SPDX-License-Identifier: MIT
 *
 * The descriptors of a process, for code that may run after a fork.
 *
 * Guarantees: everything here is async-signal-safe, so that it may run in the child of a program
 * with threads; no number is tried that is not open, because the limit of descriptors can be a
 * milliard.
 */
#ifndef VF_UTIL_DESCRIPTORS_H
#define VF_UTIL_DESCRIPTORS_H

#include <stdbool.h>
#include <stddef.h>

/* Calls `each` for all descriptors that the folder (/proc/PID/fd) names. False: cannot be read. */
bool vf_each_descriptor(int folder, void (*each)(void *data, int folder, const char *number),
                        void *data);

/* Closes all of this process but the first three and those in `kept` (-1 is none). False with
 * errno: some may still be open. */
bool vf_close_others(const int *kept, size_t count);

/* Has the other end of a socket read all that was sent? Of a peer on another host: has its kernel?
 * False if that cannot be told. Source: SIOCOUTQ of unix(7) and tcp(7). */
bool vf_all_is_read(int socket);

#endif
