/* SPDX-License-Identifier: MIT
 *
 * Everything that vmfrost keeps on its own disk: one folder for each VM.
 *
 *     STATE/storage.json             storage classes: classes.h
 *     STATE/vms/NAME/vm.json         settings
 *     STATE/vms/NAME/lock            who changes this VM right now
 *     STATE/vms/NAME/journal         what an unfinished operation has begun
 *     STATE/vms/NAME/disks.json      its disks when it was last seen running: disks.h
 *     STATE/vms/NAME/records/S.json  snapshot S
 *
 * A VM used by the path of its QMP socket alone has the folder `qmp-<hash of the real path>`, with
 * that path as its one setting, until it is added under a name: its folder is then renamed. If the
 * path is that of a VM in the inventory, it is that VM.
 *
 * Guarantees: each document has its old or its new content after any crash; folders are 0700 and
 * files 0600; a name never leads outside of its folder; a document that is not what it
 * should be is an error that names the file, never a guess.
 */
#ifndef VF_STORE_STORE_H
#define VF_STORE_STORE_H

#include <json-c/json.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "store/retention.h"
#include "util/error.h"

struct vf_store;

/* `folder` NULL: the default (vmfrost.h). Creates it if needed. NULL with the reason. */
struct vf_store *vf_store_open(const char *folder, struct vmfrost_error *error);
void vf_store_close(struct vf_store *store);

enum vf_emergency_thaw { VF_EMERGENCY_OFF, VF_EMERGENCY_SYSRQ };

/* A VM and its settings (the keys of vm.json in brackets; 0 and NULL: not set). */
struct vf_vm {
    char *name;   /* for people: the inventory's name, else the path as it was given */
    char *folder; /* absolute; may not exist yet for one that was never touched */
    bool in_inventory;
    char *qmp;                    /* "qmp": the path (or "tcp:HOST:PORT"), absolute */
    char *agent;                  /* "agent": socket of the agent; NULL: found through QMP */
    uid_t peer_uid;               /* "peerUid": who may serve these sockets; 0: see peer.c */
    char *overlay_folder;         /* "overlayFolder": absolute */
    int64_t deadline_ms;          /* "deadline": a duration like "5m" */
    int64_t frozen_limit_ms;      /* "frozenLimit" */
    enum vmfrost_quiesce quiesce; /* "quiesce": auto, require, prefer, skip */
    bool quiesce_set;
    enum vmfrost_method method; /* "method": existing, preopened */
    bool method_set;
    enum vf_emergency_thaw emergency_thaw; /* "emergencyThaw": off, sysrq */
    bool windows;                          /* "os": linux, windows */
    char *flush;                           /* "flush": auto, off, or a command; NULL: auto */
    char *freeze;                          /* "freeze": see util/mountlist.h; NULL: cut */
    bool no_prime;                         /* "prime": on, off */
    /* "keepLast", "keepHourly", "keepDaily", "keepWeekly": counts; "maxAge": a duration */
    struct vf_retention retention;
    int64_t copy_speed;        /* "copySpeed": bytes per second of a merge or an export */
    int64_t warn_depth;        /* "warnDepth": images of a chain, above which status warns */
    int64_t warn_age_ms;       /* "warnAge": of a snapshot */
    struct json_object *disks; /* "disks": an array of {"name", "file", "format"}; see disks.h */
    struct json_object *persistent; /* "persistentDisks": an array of names */
};

/* Finds a VM by name or, with a slash in it (or beginning with "tcp:"), by the path of its socket.
 * An unknown name is an error that lists names like it and says how to add one. */
bool vf_store_find(struct vf_store *store, const char *vm, struct vf_vm *vm_r,
                   struct vmfrost_error *error);
/* By the path of its socket alone, without what the inventory knows of it: for when that cannot be
 * read. False, perhaps without an error, if it is none. */
bool vf_store_find_socket(struct vf_store *store, const char *given, struct vf_vm *vm,
                          struct vmfrost_error *error);
void vf_vm_release(struct vf_vm *vm);

/* See vmfrost_add(): `settings` replaces the former ones. Unknown keys and bad values are errors
 * that name them. */
bool vf_store_add(struct vf_store *store, const char *name, struct json_object *settings,
                  struct vmfrost_error *error);
/* See vmfrost_set_persistent(). Takes the VM's lock. */
bool vf_store_set_persistent(struct vf_store *store, const char *vm, const char *disk,
                             bool persistent, struct vmfrost_error *error);
bool vf_store_remove(struct vf_store *store, const char *name, struct vmfrost_error *error);
/* See vmfrost_vms(). VMs that were only used by their path are in it too, with "name" the path,
 * while they have a snapshot or a journal. An "error" {"message":} says what is wrong with a VM's
 * settings. Owned by the caller; NULL on error. */
struct json_object *vf_store_vms(struct vf_store *store, struct vmfrost_error *error);

/* Takes the VM's lock (flock, so that it goes with its owner) and writes who has it: `what` is e.g.
 * "snapshot web@before". The descriptor, close-on-exec, to be closed to release; -1 with an
 * error (VMFROST_FAILED) that tells who holds it: pid, what, since when. Creates the VM's folder.
 *
 * Close-on-exec is no help against fork(): a child has the lock, too, and keeps it when its parent
 * is gone. A child that lives on has to close the descriptor first of all. */
int vf_vm_lock(const struct vf_vm *vm, const char *what, struct vmfrost_error *error);

/* Nothing is in the way of taking it, whoever has it now; for whoever only looks. */
bool vf_vm_lock_is_sound(const struct vf_vm *vm, struct vmfrost_error *error);

/* Somebody has the lock. Does not take it to find out, so that it disturbs nobody. */
bool vf_vm_locked(const struct vf_vm *vm);
/* Who has the lock, as {"pid", "what", "since"}, without disturbing anybody; NULL: nobody. Owned by
 * the caller. */
struct json_object *vf_vm_holder(const struct vf_vm *vm);

/* Records are documents with at least "name", "phase" and "creationTime" or "startTime". Whoever
 * saves or removes one holds the VM's lock (two writers of one record would share its temporary
 * file), which also made the folder. */
bool vf_record_save(const struct vf_vm *vm, struct json_object *record,
                    struct vmfrost_error *error);
/* NULL if there is none (with an error that names snapshots like it) or it cannot be read. */
struct json_object *vf_record_load(const struct vf_vm *vm, const char *snapshot,
                                   struct vmfrost_error *error);
bool vf_record_exists(const struct vf_vm *vm, const char *snapshot);
/* Durable when it returns. */
bool vf_record_remove(const struct vf_vm *vm, const char *snapshot, struct vmfrost_error *error);
/* Array, oldest "startTime" first, by "sequence" where that is equal. NULL on error. A record that
 * cannot be read is in it, before all others, as {"name":, "phase": "Unknown", "error": {"message":
 * why}}. */
struct json_object *vf_record_list(const struct vf_vm *vm, struct vmfrost_error *error);

#endif
