/* SPDX-License-Identifier: MIT
 *
 * The state folder, and how a VM is found in it.
 *
 * Guarantees: the state folder belongs to us or to root and nobody else can write to it, so that
 * what is found below it was put there by vmfrost; a VM that can be meant by two names is one VM.
 */
#include <errno.h>
#include <pwd.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "store/private.h"
#include "util/cleanup.h"
#include "util/file.h"
#include "util/mem.h"
#include "util/text.h"

/* NULL: not set, or set to nothing. */
static const char *
environment(const char *name)
{
    const char *value = getenv(name);

    return value && *value ? value : NULL;
}

/* As vmfrost.h promises. NULL if there is no place. Owned by the caller. */
static char *
default_folder(void)
{
    const char *given = environment("VMFROST_STATE_DIR");
    const char *state = environment("XDG_STATE_HOME");
    const char *home = environment("HOME");

    if (given)
        return vf_strdup(given);
    if (geteuid() == 0)
        return vf_strdup("/var/lib/vmfrost");
    /* The XDG rules: a relative path is to be ignored. */
    if (state && state[0] == '/')
        return vf_printf("%s/vmfrost", state);
    if (!home || home[0] != '/') {
        const struct passwd *user = getpwuid(geteuid());

        home = user ? user->pw_dir : NULL;
    }
    return home && home[0] == '/' ? vf_printf("%s/.local/state/vmfrost", home) : NULL;
}

static bool
open_folders(struct vf_store *store, const char *path, struct vmfrost_error *error)
{
    VF_AUTO_FREE char *trimmed = vf_strdup(path);
    size_t length = strlen(trimmed);

    while (length > 1 && trimmed[length - 1] == '/')
        trimmed[--length] = '\0';
    bool there = access(trimmed, F_OK) == 0;

    if (!there && !vf_make_folders(trimmed, error))
        return false;
    if (!there && vf_sync_folder_of(trimmed) < 0)
        return vf_fail(error, VMFROST_FAILED, "cannot make the folder %s durable: %s", trimmed,
                       strerror(errno));
    /* The folder itself may be a link to a larger disk; nothing below it may be one. */
    store->folder = realpath(trimmed, NULL);
    if (!store->folder)
        return vf_fail(error, VMFROST_FAILED, "cannot find the state folder %s: %s", trimmed,
                       strerror(errno));
    store->vms = vf_printf("%s/vms", store->folder);
    return vf_folder_is_safe(store->folder, error) && vf_folder_make(store->vms, error);
}

struct vf_store *
vf_store_open(const char *folder, struct vmfrost_error *error)
{
    VF_AUTO_FREE char *path = folder ? vf_strdup(folder) : default_folder();

    if (!path || !*path) {
        vf_fail(error, VMFROST_FAILED, "there is no place for the state folder: %s",
                folder ? "its name is empty" : "neither XDG_STATE_HOME nor HOME is set");
        vf_hint(error, "Set VMFROST_STATE_DIR to a folder of your own.");
        return NULL;
    }
    struct vf_store *store = vf_alloc(sizeof *store);

    if (open_folders(store, path, error))
        return store;
    vf_hint(error, "VMFROST_STATE_DIR chooses another folder.");
    vf_store_close(store);
    return NULL;
}

void
vf_store_close(struct vf_store *store)
{
    if (!store)
        return;
    free(store->vms);
    free(store->folder);
    free(store);
}

void
vf_vm_release(struct vf_vm *vm)
{
    free(vm->name);
    free(vm->folder);
    free(vm->qmp);
    free(vm->agent);
    free(vm->overlay_folder);
    free(vm->flush);
    free(vm->freeze);
    json_object_put(vm->disks);
    json_object_put(vm->persistent);
    memset(vm, 0, sizeof *vm);
}

/* True with `folder` NULL: there is none of this name. */
static bool
find_by_name(struct vf_store *store, const char *name, struct vf_vm *vm,
             struct vmfrost_error *error)
{
    VF_AUTO_FREE char *folder = vf_printf("%s/%s", store->vms, name);
    VF_AUTO_FREE char *document = vf_printf("%s/vm.json", folder);
    VF_AUTO_JSON struct json_object *settings = NULL;

    if (!vf_settings_load(folder, &settings, error))
        return false;
    if (!settings)
        return true;
    vm->name = vf_strdup(name);
    vm->folder = VF_STEAL(folder);
    vm->in_inventory = true;
    return vf_settings_read(settings, document, VMFROST_FAILED, vm, error);
}

static bool
find_by_address(struct vf_store *store, const char *given, struct vf_vm *vm,
                struct vmfrost_error *error)
{
    VF_AUTO_FREE char *address = vf_address(given, error);
    VF_AUTO_FREE char *name = NULL;
    VF_AUTO_FREE char *recorded = NULL;

    if (!address || !vf_inventory_holder(store->vms, address, NULL, &name, error))
        return false;
    if (name)
        return find_by_name(store, name, vm, error);
    VF_AUTO_FREE char *folder = vf_address_folder(store->vms, address);

    if (!vf_settings_address(folder, &recorded, error))
        return false;
    if (recorded && strcmp(recorded, address) != 0)
        return vf_fail(error, VMFROST_FAILED, "the folder of %s, %s, is that of %s", address,
                       folder, recorded);
    vm->name = vf_strdup(given);
    vm->folder = VF_STEAL(folder);
    vm->qmp = VF_STEAL(address);
    return true;
}

/* Always false. */
static bool
unknown(struct vf_store *store, const char *name, struct vmfrost_error *error)
{
    VF_CLEANUP(vf_list_release) struct vf_list all = {NULL, 0};
    VF_CLEANUP(vf_list_release) struct vf_list named = {NULL, 0};
    struct stat about;

    if (!vf_folder_names(store->vms, &all, error))
        return false;
    for (size_t i = 0; i < all.count; i++)
        if (vf_valid_name(all.names[i]) && !vf_is_address_folder(all.names[i]))
            vf_list_add(&named, all.names[i]);
    VF_AUTO_FREE char *near = vf_list_near(&named, name);

    if (near)
        vf_fail(error, VMFROST_FAILED, "there is no VM \"%s\"; there is %s", name, near);
    else
        vf_fail(error, VMFROST_FAILED, "there is no VM \"%s\"", name);
    if (lstat(name, &about) == 0 && S_ISSOCK(about.st_mode))
        return vf_hint(error, "If you mean the socket of this name: ./%s", name);
    if (!vf_valid_name(name))
        return vf_hint(error, "A VM is given by its name, or by the path of its QMP socket.");
    return vf_hint(error, "To add it: vmfrost add %s --qmp PATH", name);
}

bool
vf_store_find_socket(struct vf_store *store, const char *given, struct vf_vm *vm,
                     struct vmfrost_error *error)
{
    VF_AUTO_FREE char *address = vf_is_address(given) ? vf_address(given, error) : NULL;

    memset(vm, 0, sizeof *vm);
    if (!address)
        return false;
    vm->name = vf_strdup(given);
    vm->folder = vf_address_folder(store->vms, address);
    vm->qmp = VF_STEAL(address);
    return true;
}

bool
vf_store_find(struct vf_store *store, const char *vm, struct vf_vm *vm_r,
              struct vmfrost_error *error)
{
    memset(vm_r, 0, sizeof *vm_r);
    if (vf_is_address(vm) ? !find_by_address(store, vm, vm_r, error)
                          : vf_valid_name(vm) && !vf_is_address_folder(vm) &&
                                !find_by_name(store, vm, vm_r, error)) {
        vf_vm_release(vm_r);
        return false;
    }
    return vm_r->folder || unknown(store, vm, error);
}
