/* SPDX-License-Identifier: MIT
 *
 * The inventory: VMs that were given a name.
 *
 * Guarantees: a VM is added or removed by one rename, so that a crash leaves it known or unknown
 * and nothing between; one socket has one folder, and so one lock, whatever happens at the same
 * time. For that, whoever gives a socket to a name holds the lock of the folder that the
 * socket has without one.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "store/journal.h"
#include "store/private.h"
#include "util/cleanup.h"
#include "util/file.h"
#include "util/json.h"
#include "util/mem.h"
#include "util/text.h"

bool
vf_inventory_holder(const char *vms, const char *address, const char *skip, char **name_r,
                    struct vmfrost_error *error)
{
    VF_CLEANUP(vf_list_release) struct vf_list names = {NULL, 0};
    struct vmfrost_error unreadable = {.code = VMFROST_OK};

    *name_r = NULL;
    if (!vf_folder_names(vms, &names, error))
        return false;
    for (size_t i = 0; i < names.count; i++) {
        const char *name = names.names[i];
        VF_AUTO_FREE char *folder = vf_printf("%s/%s", vms, name);
        VF_AUTO_FREE char *has = NULL;

        if (!vf_valid_name(name) || vf_is_address_folder(name) || (skip && !strcmp(name, skip)))
            continue;
        if (vf_settings_address(folder, &has, &unreadable) && has && strcmp(has, address) == 0) {
            *name_r = vf_strdup(name);
            return true;
        }
    }
    if (!vf_failed(&unreadable))
        return true;
    /* It may be that one: two folders for one VM would be two locks. */
    vf_fail(error, unreadable.code, "%s", unreadable.text);
    vf_prefix(error, "cannot tell whether %s is a VM of the inventory", address);
    return vf_hint(error, "%s", unreadable.next);
}

/* Removing a VM was interrupted after it was removed. */
static void
sweep_removed(struct vf_store *store)
{
    VF_CLEANUP(vf_list_release) struct vf_list names = {NULL, 0};
    struct vmfrost_error ignored = {.code = VMFROST_OK};

    if (!vf_folder_names(store->vms, &names, &ignored))
        return;
    for (size_t i = 0; i < names.count; i++) {
        VF_AUTO_FREE char *folder = vf_printf("%s/%s", store->vms, names.names[i]);

        if (vf_starts_with(names.names[i], ".removed-"))
            vf_folder_discard(folder);
    }
}

/* There is nothing in the VM's folder that somebody could miss; else false with the reason. */
static bool
is_empty(const struct vf_vm *vm, struct vmfrost_error *error)
{
    VF_CLEANUP(vf_list_release) struct vf_list records = {NULL, 0};

    if (vf_journal_exists(vm)) {
        vf_fail(error, VMFROST_FAILED, "%s has an operation that was interrupted", vm->name);
        return vf_hint(error, "Finish it first: vmfrost recover %s", vm->name);
    }
    if (!vf_record_names(vm, &records, error))
        return false;
    if (records.count == 0)
        return true;
    VF_AUTO_FREE char *text = vf_list_text(&records, 10);

    vf_fail(error, VMFROST_FAILED, "%s has %zu snapshot%s: %s", vm->name, records.count,
            records.count == 1 ? "" : "s", text);
    return vf_hint(error, "Delete them first: vmfrost delete %s@%s", vm->name, records.names[0]);
}

/*
 * Adding
 */

/* The folder that the socket has without a name gets one. */
static bool
add_new(struct vf_store *store, const char *name, const struct vf_vm *by_address,
        struct json_object *settings, struct vmfrost_error *error)
{
    VF_AUTO_FREE char *what = vf_printf("add %s", name);
    VF_AUTO_FREE char *folder = vf_printf("%s/%s", store->vms, name);
    VF_AUTO_FD int lock = vf_vm_lock_for(by_address, what, name, error);

    if (lock < 0)
        return false;
    if (!vf_settings_save(by_address->folder, settings, error) ||
        rename(by_address->folder, folder) < 0) {
        /* If it was not the saving that failed: somebody else has just added this name. */
        vf_fail(error, VMFROST_FAILED, "cannot create %s: %s", folder, strerror(errno));
        vf_folder_discard(by_address->folder);
        return vf_hint(error, "Look whether it is there now: vmfrost status %s", name);
    }
    if (vf_sync_folder(store->vms) < 0)
        return vf_fail(error, VMFROST_FAILED, "cannot make %s durable: %s", folder,
                       strerror(errno));
    return true;
}

static bool
add_again(const char *name, const char *folder, struct vf_vm *by_address,
          struct json_object *settings, struct vmfrost_error *error)
{
    VF_AUTO_FREE char *what = vf_printf("add %s", name);
    /* Without its address: what vm.json holds now may be what is to be repaired. */
    struct vf_vm vm = {.name = (char *)name, .folder = (char *)folder, .in_inventory = true};
    VF_AUTO_FD int lock = vf_vm_lock_for(&vm, what, name, error);
    VF_AUTO_FD int address_lock = -1;
    VF_AUTO_FREE char *had = NULL;
    struct vmfrost_error ignored = {.code = VMFROST_OK};

    if (lock < 0)
        return false;
    if (vf_settings_address(folder, &had, &ignored) && had && strcmp(had, by_address->qmp) == 0)
        return vf_settings_save(folder, settings, error);
    address_lock = vf_vm_lock_for(by_address, what, name, error);
    if (address_lock < 0)
        return false;
    if (!is_empty(by_address, error)) {
        vf_prefix(error, "cannot make %s the socket of %s", by_address->qmp, name);
        return false;
    }
    if (!vf_settings_save(folder, settings, error))
        return false;
    vf_folder_discard(by_address->folder);
    return true;
}

bool
vf_store_add(struct vf_store *store, const char *name, struct json_object *settings,
             struct vmfrost_error *error)
{
    VF_CLEANUP(vf_vm_release) struct vf_vm wanted = {.name = NULL};
    VF_CLEANUP(vf_vm_release) struct vf_vm by_address = {.name = NULL};
    VF_AUTO_JSON struct json_object *absolute = NULL;
    VF_AUTO_FREE char *where = vf_printf("the settings of %s", name);
    VF_AUTO_FREE char *folder = vf_printf("%s/%s", store->vms, name);
    VF_AUTO_FREE char *holder = NULL;
    struct stat about;

    if (!vf_valid_name(name) || vf_is_address_folder(name)) {
        vf_fail(error, VMFROST_USAGE, "\"%s\" cannot be the name of a VM", name);
        return vf_hint(error, "A name has 1 to 64 letters, digits, and . _ + - and begins with "
                              "neither a dot nor a dash.");
    }
    absolute = vf_settings_absolute(settings, error);
    if (!absolute || !vf_settings_read(absolute, where, VMFROST_USAGE, &wanted, error) ||
        !vf_inventory_holder(store->vms, wanted.qmp, name, &holder, error))
        return false;
    if (holder) {
        vf_fail(error, VMFROST_FAILED, "%s is the socket of VM \"%s\" already", wanted.qmp, holder);
        return vf_hint(error, "Use that name, or forget it first: vmfrost remove %s", holder);
    }
    sweep_removed(store);
    by_address.name = vf_strdup(wanted.qmp);
    by_address.qmp = vf_strdup(wanted.qmp);
    by_address.folder = vf_address_folder(store->vms, wanted.qmp);
    if (lstat(folder, &about) == 0)
        return add_again(name, folder, &by_address, absolute, error);
    return add_new(store, name, &by_address, absolute, error);
}

/*
 * Removing
 */

bool
vf_store_remove(struct vf_store *store, const char *name, struct vmfrost_error *error)
{
    VF_CLEANUP(vf_vm_release) struct vf_vm vm = {.name = NULL};
    VF_AUTO_FREE char *what = vf_printf("remove %s", name);
    char id[17];
    struct stat about;

    /* By a name, even settings that cannot be read are no obstacle. */
    if (!vf_is_address(name) && vf_valid_name(name) && !vf_is_address_folder(name)) {
        vm.name = vf_strdup(name);
        vm.folder = vf_printf("%s/%s", store->vms, name);
        vm.in_inventory = true;
    }
    if (!vm.folder || lstat(vm.folder, &about) < 0) {
        vf_vm_release(&vm);
        if (!vf_store_find(store, name, &vm, error))
            return false;
    }
    if (lstat(vm.folder, &about) < 0)
        return vf_fail(error, VMFROST_FAILED, "nothing is known of %s", vm.name);
    VF_AUTO_FD int lock = vf_vm_lock(&vm, what, error);

    if (lock < 0 || !is_empty(&vm, error) || !vf_folder_is_worthless(vm.folder, error))
        return false;
    vf_random_hex(id);
    VF_AUTO_FREE char *removed = vf_printf("%s/.removed-%s", store->vms, id);

    if (rename(vm.folder, removed) < 0 || vf_sync_folder(store->vms) < 0)
        return vf_fail(error, VMFROST_FAILED, "cannot remove %s: %s", vm.folder, strerror(errno));
    sweep_removed(store);
    return true;
}

/*
 * Listing
 */

/* NULL: it has been removed since it was listed. */
static struct json_object *
describe(struct vf_store *store, const char *name)
{
    VF_AUTO_FREE char *folder = vf_printf("%s/%s", store->vms, name);
    VF_AUTO_FREE char *document = vf_printf("%s/vm.json", folder);
    VF_CLEANUP(vf_list_release) struct vf_list records = {NULL, 0};
    VF_CLEANUP(vf_vm_release) struct vf_vm found = {.name = NULL};
    struct vmfrost_error error = {.code = VMFROST_OK};
    VF_AUTO_JSON struct json_object *settings = NULL;
    const struct vf_vm vm = {.name = (char *)name, .folder = folder};

    if (access(folder, F_OK) < 0 && errno == ENOENT)
        return NULL;
    struct json_object *entry = vf_json_new_object();

    if (vf_settings_load(folder, &settings, &error) && settings)
        vf_settings_read(settings, document, VMFROST_FAILED, &found, &error);
    else
        vf_fail(&error, VMFROST_FAILED, "%s is missing", document);
    vf_record_names(&vm, &records, &error);
    vf_json_add_string(entry, "name", vf_is_address_folder(name) && found.qmp ? found.qmp : name);
    vf_json_add(entry, "settings", settings ? VF_STEAL(settings) : vf_json_new_object());
    vf_json_add_int(entry, "snapshots", (int64_t)records.count);
    vf_json_add_bool(entry, "interrupted", vf_journal_exists(&vm) && !vf_vm_locked(&vm));
    if (vf_failed(&error))
        vf_json_add(entry, "error", vf_json_strings("message", error.text, NULL));
    return entry;
}

/* A folder without a name, with nothing in it: somebody once looked at a socket. */
static bool
is_forgettable(struct vf_store *store, const char *name)
{
    VF_AUTO_FREE char *folder = vf_printf("%s/%s", store->vms, name);
    const struct vf_vm vm = {.name = (char *)name, .folder = folder};
    struct vmfrost_error ignored = {.code = VMFROST_OK};

    return is_empty(&vm, &ignored);
}

struct json_object *
vf_store_vms(struct vf_store *store, struct vmfrost_error *error)
{
    VF_CLEANUP(vf_list_release) struct vf_list names = {NULL, 0};

    if (!vf_folder_names(store->vms, &names, error))
        return NULL;
    struct json_object *vms = vf_json_new_array();

    for (int nameless = 0; nameless <= 1; nameless++)
        for (size_t i = 0; i < names.count; i++) {
            const char *name = names.names[i];

            if (!vf_valid_name(name) || vf_is_address_folder(name) != nameless ||
                (nameless && is_forgettable(store, name)))
                continue;
            struct json_object *vm = describe(store, name);

            if (vm)
                vf_json_append(vms, vm);
        }
    return vms;
}
