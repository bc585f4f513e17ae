/* SPDX-License-Identifier: MIT
 *
 * One attempt to connect a stream socket, without blocking.
 */
#ifndef VF_WIRE_DIAL_H
#define VF_WIRE_DIAL_H

/* Connects to the UNIX socket at `path`, of any length, or to "tcp:HOST:PORT" with a numeric HOST
 * ("[::1]" for IPv6). 0: connected. EINPROGRESS: wait until it is writable, and read SO_ERROR.
 * In both cases *fd_r is the caller's; else the errno of the failure, and *fd_r is -1. */
int vf_dial(const char *path, int *fd_r);

/* What such an errno means to a user. */
const char *vf_dial_words(int error);

#endif
