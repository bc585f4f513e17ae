/* SPDX-License-Identifier: MIT
 *
 * QEMU as a process of this host: who it is, and whether it still is the same.
 */
#ifndef VF_VM_PROCESS_H
#define VF_VM_PROCESS_H

#include <json-c/json.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "vm/names.h"

/* A process id that cannot be mistaken after the kernel used it again. */
struct vf_process {
    pid_t pid;        /* 0: not known */
    uint64_t started; /* field 22 of /proc/PID/stat, in clock ticks since boot */
};

struct vf_process vf_process_of(pid_t pid); /* {0, 0} if there is no such process */
/* What cannot be looked at, because there are no descriptors left for example, is neither: so each
 * asks for what it has to be sure of. One that is not known is gone. */
bool vf_process_alive(struct vf_process process);
bool vf_process_gone(struct vf_process process);

/* Whether it lives in our namespace of that kind ("mnt", "user"); false also if that cannot be
 * seen. */
bool vf_process_shares(pid_t pid, const char *kind);

/* As whom a process opens files. Source: proc(5), /proc/PID/status. */
struct vf_rights {
    bool known; /* it can be looked at */
    bool all;   /* owners and modes do not count for it: CAP_DAC_OVERRIDE */
    uid_t user;
};
struct vf_rights vf_process_rights(pid_t pid);
/* It can open a file of that owner and mode for reading and writing, whatever its groups are. */
bool vf_rights_suffice(const struct vf_rights *rights, uid_t owner, mode_t mode);

/* All qemu-system-* and qemu-kvm processes that can be looked at, as a JSON array of
 * {"pid", "name" (from -name, else absent), "qmp": [paths of QMP sockets that QEMU listens on,
 * made absolute by QEMU's own folder], "agent": [paths of sockets behind a virtserialport named
 * org.qemu.guest_agent.0], "noReboot": bool, "user": uid}. From /proc/PID/cmdline: -qmp,
 * -qmp-pretty, -mon with -chardev (both spellings server=on and server), -name guest=. Owned by the
 * caller. */
struct json_object *vf_process_find_qemus(void);

/* Programs of QEMU's (qemu-system-*, qemu-storage-daemon, qemu-img, qemu-nbd, ...) that have the
 * file open and can be looked at, but for those in `known`, as a JSON array of {"pid", "name"}.
 * Owned by the caller. */
struct json_object *vf_process_find_users(struct vf_inode inode, const pid_t *known, size_t count);

/* The same object for one process; NULL if it is no such one, or cannot be looked at. */
struct json_object *vf_process_describe_qemu(pid_t pid);

/* The same object without "pid" and "user", from a command line as /proc/PID/cmdline has it (each
 * argument ends with a NUL) and QEMU's folder; relative paths are left out if that is NULL. What
 * QEMU would not accept says nothing here, and is no error. Pure. Owned by the caller. */
struct json_object *vf_process_parse_qemu(const char *cmdline, size_t length, const char *folder);

#endif
