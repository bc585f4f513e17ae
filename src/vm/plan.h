/* SPDX-License-Identifier: MIT
 *
 * Which disks a snapshot takes, and why it leaves out the others.
 *
 * A pure function from QEMU's own answers to a decision: no socket, no file, no clock. What it
 * cannot see in those answers (does a name still lead to the file that QEMU has open?) is asked
 * afterwards, in names.h.
 */
#ifndef VF_VM_PLAN_H
#define VF_VM_PLAN_H

#include <json-c/json.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "util/error.h"

enum vf_reason {
    VF_INCLUDED,
    VF_OUT_EMPTY, /* no medium */
    VF_OUT_CDROM,
    VF_OUT_READ_ONLY,
    VF_OUT_FIRMWARE,   /* pflash: firmware code or its variables */
    VF_OUT_UNATTACHED, /* a drive that no device uses */
    VF_OUT_TEMPORARY,  /* snapshot=on: its content is gone with QEMU */
    VF_OUT_VVFAT,      /* a folder shown as a disk */
    VF_OUT_COPY_ON_READ,
    VF_OUT_FILTER,        /* below a filter that we do not pass, or a driver that we do not know */
    VF_OUT_DUPLICATE,     /* the same node as another disk */
    VF_OUT_HOTPLUGGED,    /* plugged in after QEMU's start, and not said to stay */
    VF_OUT_STORAGE_CLASS, /* its storage class says so */
    VF_OUT_REQUESTED,     /* --exclude */
    VF_OUT_NAME,          /* set by names.h's callers: its file cannot be found or named safely */
};

struct vf_disk {
    char *name;      /* for people and --exclude: the drive's id, else the device's id (as in
                        /machine/peripheral/vd0/virtio-backend), else the node's name, else the
                        device's QOM path. The first of these that no disk before it has; else
                        "disk" and a number that none has */
    char *device;    /* name of QEMU's block backend; "" for -blockdev */
    char *qdev;      /* id or QOM path of the device; NULL if none */
    char *root;      /* node that the device uses; NULL for an empty drive */
    char *node;      /* node to cut: `root`, or the first below its filters */
    char *format;    /* driver of `node`: "qcow2", "raw", "file", ... */
    char *file;      /* file name of `node` as QEMU knows it; may be relative to QEMU's folder.
                        For qcow2 the one of the file below it: its own is a "json:" text as soon as
                        an overlay's header differs from the running graph */
    char *protocol;  /* driver of what is below all formats and filters: "file", "nbd", ...; NULL if
                        nothing is inserted, or the node is not to be found */
    char *file_node; /* node of its "file" child; NULL if it has none (a protocol node) */
    bool file_named; /* that child has a name of the launcher's; QEMU's own begin with '#'. Only
                        then can it be a node of its own (-blockdev) that QEMU does not reopen by
                        name. It need not be: "file.node-name=f" names a child that is reopened all
                        the same (seen on 7.2). Proof is the refusal of a blockdev-del of it: "Block
                        device f is in use" for a node of its own, "Node f is not owned by the
                        monitor" for the other */
    int64_t size;    /* virtual, in bytes */
    bool writeback, direct, no_flush; /* cache modes */
    bool encrypted;  /* LUKS or the old AES encryption in qcow2, or a luks node below */
    int depth;       /* backing files below `node` */
    bool hotplugged; /* plugged in after QEMU's start, so that the launcher does not know it */
    bool persistent; /* it was there at the start, or the user says that it stays */
    enum vf_reason reason;
    char *why; /* a sentence for people when it is left out; NULL when included */
};

struct vf_plan {
    struct vf_disk *disks; /* all of them, in QEMU's order */
    size_t count, included;
    char *run_state; /* query-status' word */
    bool running;    /* the guest executes, so that an agent could answer */
    char **warnings; /* sentences: cache=unsafe, protocol node only, deep chain, export attached,
                        dirty bitmaps */
    size_t warning_count;
};

/* Images of a chain. QEMU has no limit of its own; each file costs descriptors and time to open. */
#define VF_DEPTH_WARNED 16

/* QEMU's replies ("return" values), borrowed. */
struct vf_plan_input {
    struct json_object *status;     /* query-status */
    struct json_object *migrate;    /* query-migrate; NULL: not asked */
    struct json_object *jobs;       /* query-jobs */
    struct json_object *block_jobs; /* query-block-jobs */
    struct json_object *block;      /* query-block */
    struct json_object *nodes;      /* query-named-block-nodes flat:true */
    struct json_object *graph;      /* x-debug-query-block-graph */
    struct json_object *hotplugged; /* "hotplugged" of each device, by query-block's "qdev"; NULL:
                                       not asked. One that is not there counts as not hotplugged */
    struct json_object *persistent; /* array: names of hotplugged disks that count as the others;
                                       NULL: none */
    struct json_object *left_out; /* names of disks that their storage classes leave out, each with
                                     its sentence; NULL: none */
    const char *const *exclude;   /* names that the user excludes */
    size_t exclude_count;
    int64_t depth_warned;       /* so many backing files are worth a warning; 0: VF_DEPTH_WARNED */
    const char *const *include; /* names of hotplugged disks that the user wants this time */
    size_t include_count;
};

/* Fills `plan` (always: also after a refusal its disks can be shown; to be released with
 * vf_plan_release()). False with the refusal: a run state or a migration that forbids a
 * snapshot, a job on a disk that would be cut (also one on a node below or above it), an
 * exclusion or an inclusion that names no disk, an inclusion of a disk that cannot be cut, no
 * eligible disk (every disk and its reason is in the text), replies that make no sense. */
bool vf_plan_make(const struct vf_plan_input *input, struct vf_plan *plan,
                  struct vmfrost_error *error);
void vf_plan_release(struct vf_plan *plan);

/* Only whether the run state or a migration forbids to change the disks of a VM. vf_plan_make()
 * asks it, too. */
bool vf_plan_check_state(const struct vf_plan_input *input, const struct vf_plan *plan,
                         struct vmfrost_error *error);

/* Leaves out a disk after all; false with the refusal when none is left then. `why` is owned
 * by this call. */
bool vf_plan_drop(struct vf_plan *plan, size_t index, enum vf_reason reason, char *why,
                  struct vmfrost_error *error);

/* The reason as one word for records and programs: "Empty", "Cdrom", "ReadOnly", ... */
const char *vf_reason_name(enum vf_reason reason);

/* {"disks":[{"name","node","format","file","size","hotplugged","persistent","eligible","reason",
 *  "message"}], "runState", "warnings"}. Owned by the caller. */
struct json_object *vf_plan_json(const struct vf_plan *plan);

#endif
