/* SPDX-License-Identifier: MIT
 *
 * What the files of this room share. Nobody outside of it includes this.
 */
#ifndef VF_STORE_PRIVATE_H
#define VF_STORE_PRIVATE_H

#include <json-c/json.h>
#include <stdbool.h>
#include <stddef.h>

#include "store/store.h"

struct vf_store {
    char *folder; /* absolute, symbolic links resolved */
    char *vms;    /* STATE/vms */
};

/*
 * folder.c: folders, documents, lists of names
 */

/* Names, sorted. */
struct vf_list {
    char **names;
    size_t count;
};
void vf_list_release(struct vf_list *list);
void vf_list_add(struct vf_list *list, const char *name);
/* `"web", "web2"`: up to three names like `wanted`, the nearest first. NULL if there is none.
 * Owned by the caller. */
char *vf_list_near(const struct vf_list *list, const char *wanted);
/* `a, b, c and 4 more`. Owned by the caller. */
char *vf_list_text(const struct vf_list *list, size_t most);

/* A folder that nobody but us and root can change anything in. */
bool vf_folder_is_safe(const char *path, struct vmfrost_error *error);
/* Creates one folder, durably; one that is there already is fine if it is safe; a symbolic link is
 * not. */
bool vf_folder_make(const char *path, struct vmfrost_error *error);
/* All entries; none if there is no such folder. */
bool vf_folder_names(const char *path, struct vf_list *list, struct vmfrost_error *error);
/* There is nothing in a VM's folder that is not known to hold nothing of worth: no record, no
 * journal, no file of somebody else's. */
bool vf_folder_is_worthless(const char *folder, struct vmfrost_error *error);
/* Removes a folder, if it is that, with what is in it. */
void vf_folder_discard(const char *folder);
/* Removes new documents that a crash kept from their places. The VM's lock is held. */
void vf_folder_sweep(const char *folder);

/* True with NULL: there is none. */
bool vf_document_load(const char *path, size_t most, struct json_object **document_r,
                      struct vmfrost_error *error);
/* The same of a document that is a list. */
bool vf_document_load_array(const char *path, size_t most, struct json_object **document_r,
                            struct vmfrost_error *error);
/* Refuses what vf_document_load() would not read again. */
bool vf_document_save(const char *path, struct json_object *document, size_t most,
                      struct vmfrost_error *error);

/*
 * settings.c: vm.json, addresses of sockets
 */

/* "tcp:HOST:PORT" as it is, or a path, made absolute: symbolic links in its folder resolved as far
 * as the folder exists. Owned by the caller; NULL with VMFROST_USAGE. */
char *vf_address(const char *given, struct vmfrost_error *error);
bool vf_is_address(const char *vm);
/* "qmp-<hash>" below `vms`. Owned by the caller. */
char *vf_address_folder(const char *vms, const char *address);
bool vf_is_address_folder(const char *name);
/* It can stand in JSON and in messages: no control characters, and UTF-8. */
bool vf_is_plain(const char *text);
/* QEMU's own rule: a colon before the first slash makes a protocol of what stands before it. */
bool vf_is_protocol(const char *file);

/* The settings with their paths made absolute. NULL with VMFROST_USAGE. */
struct json_object *vf_settings_absolute(struct json_object *settings, struct vmfrost_error *error);
/* Fills the members of `vm` that have a key; `where` is named in errors. */
bool vf_settings_read(struct json_object *settings, const char *where, enum vmfrost_code code,
                      struct vf_vm *vm, struct vmfrost_error *error);
/* vm.json of a folder. True with NULL: there is none. */
bool vf_settings_load(const char *folder, struct json_object **settings_r,
                      struct vmfrost_error *error);
bool vf_settings_save(const char *folder, struct json_object *settings,
                      struct vmfrost_error *error);
/* Only "qmp", so that another bad setting hides no VM: NULL in `address_r` if there is no vm.json.
 */
bool vf_settings_address(const char *folder, char **address_r, struct vmfrost_error *error);

/*
 * inventory.c
 */

/* The VM of the inventory that has this address, NULL if none, `skip` (may be NULL) not counted.
 * False if that cannot be known. */
bool vf_inventory_holder(const char *vms, const char *address, const char *skip, char **name_r,
                         struct vmfrost_error *error);

/*
 * lock.c
 */

/* vf_vm_lock(); `skip`: a VM of the inventory that is about to get this one's address. */
int vf_vm_lock_for(const struct vf_vm *vm, const char *what, const char *skip,
                   struct vmfrost_error *error);

/*
 * disks.c
 */

/* The setting "persistentDisks" is what it should be; `where` is named in errors. */
bool vf_disks_are_names(struct json_object *names, const char *where, enum vmfrost_code code,
                        struct vmfrost_error *error);
/* The same of "disks". */
bool vf_disks_declared(struct json_object *disks, const char *where, enum vmfrost_code code,
                       struct vmfrost_error *error);

/*
 * records.c
 */

/* Names of all records, damaged ones too. */
bool vf_record_names(const struct vf_vm *vm, struct vf_list *list, struct vmfrost_error *error);

#endif
