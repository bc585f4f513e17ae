/* SPDX-License-Identifier: MIT
 *
 * Guarantees: disks.json has its old or its new content after any crash and with any number of
 * writers at a time; one that is not what it should be is an error that names it.
 */
#include "store/disks.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>

#include "store/private.h"
#include "util/cleanup.h"
#include "util/file.h"
#include "util/json.h"
#include "util/mem.h"
#include "util/text.h"

enum { DISKS_MOST = 1024 * 1024 };

/*
 * What was seen
 */

/* True if the member is absent or of this type. */
static bool
may_be(struct json_object *object, const char *key, enum json_type type)
{
    struct json_object *value;

    return !json_object_object_get_ex(object, key, &value) || json_object_is_type(value, type);
}

/* What is wrong with a disk; NULL if nothing. */
static const char *
fault_of_disk(struct json_object *disk)
{
    static const char *const texts[] = {"name",   "file",   "link",   "format",
                                        "naming", "device", "reason", "message"};
    const char *name = vf_json_string(disk, "name"), *naming = vf_json_string(disk, "naming");
    struct json_object *eligible;
    int64_t size = 0;

    if (!json_object_is_type(disk, json_type_object) || !name || !*name)
        return "a disk has no name";
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++)
        if (json_object_object_get_ex(disk, texts[i], NULL) && !vf_json_string(disk, texts[i]))
            return "what should be a text is none";
    if (!json_object_object_get_ex(disk, "eligible", &eligible) ||
        !json_object_is_type(eligible, json_type_boolean))
        return "a disk is neither eligible nor not";
    if (naming && strcmp(naming, "flip") != 0 && strcmp(naming, "new-file") != 0)
        return "a \"naming\" is neither \"flip\" nor \"new-file\"";
    if (!may_be(disk, "size", json_type_int) || (vf_json_int(disk, "size", &size) && size < 0))
        return "a size is none";
    if (!json_object_get_boolean(eligible))
        return vf_json_string(disk, "reason") ? NULL : "a disk is left out for no reason";
    return vf_json_string(disk, "file") && vf_json_string(disk, "format") && naming &&
                   vf_json_int(disk, "size", &size)
               ? NULL
               : "an eligible disk lacks its file, format, size or naming";
}

static const char *
fault_of(struct json_object *document)
{
    struct json_object *disks = vf_json_array(document, "disks");

    if (!vf_json_string(document, "seen"))
        return "\"seen\" is missing";
    if (!disks)
        return "\"disks\" is missing";
    for (size_t i = 0; i < vf_json_length(disks); i++) {
        const char *fault = fault_of_disk(vf_json_at(disks, i));

        if (fault)
            return fault;
    }
    return NULL;
}

static char *
disks_path(const struct vf_vm *vm)
{
    return vf_printf("%s/disks.json", vm->folder);
}

struct json_object *
vf_disks_load(const struct vf_vm *vm, struct vmfrost_error *error)
{
    VF_AUTO_FREE char *path = disks_path(vm);
    VF_AUTO_JSON struct json_object *document = NULL;

    if (!vf_document_load(path, DISKS_MOST, &document, error) || !document)
        return NULL;
    const char *fault = fault_of(document);

    if (fault) {
        vf_fail(error, VMFROST_FAILED, "%s is damaged: %s", path, fault);
        vf_hint(error, "Remove it: it is written again when the VM is seen running.");
        return NULL;
    }
    return VF_STEAL(document);
}

bool
vf_disks_save(const struct vf_vm *vm, struct json_object *disks, struct vmfrost_error *error)
{
    VF_AUTO_FREE char *path = disks_path(vm);
    const char *fault = fault_of(disks);

    if (fault)
        return vf_fail(error, VMFROST_FAILED, "cannot write %s: %s", path, fault);
    /* Two writers would share the temporary file. The VM's lock is not for this: somebody who only
     * looks does not take it. Gone with the descriptor. */
    VF_AUTO_FD int folder = open(vm->folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

    if (folder < 0 || flock(folder, LOCK_EX) < 0)
        return vf_fail(error, VMFROST_FAILED, "cannot write %s: %s", path, strerror(errno));
    return vf_document_save(path, disks, DISKS_MOST, error);
}

/*
 * What was declared
 */

static bool
is_format(const char *text)
{
    static const char *const formats[] = {"qcow2", "raw", "qed",  "qcow",
                                          "vmdk",  "vdi", "vhdx", "vpc"};

    for (size_t i = 0; i < sizeof formats / sizeof *formats; i++)
        if (strcmp(text, formats[i]) == 0)
            return true;
    return false;
}

/* What is wrong with a declared disk; NULL if nothing. */
static const char *
fault_of_declared(struct json_object *disks, size_t index)
{
    struct json_object *disk = vf_json_at(disks, index);
    const char *name = vf_json_string(disk, "name"), *file = vf_json_string(disk, "file"),
               *format = vf_json_string(disk, "format");

    if (!json_object_is_type(disk, json_type_object))
        return "is no object";
    if (!name || !*name || !vf_is_plain(name))
        return "has no \"name\"";
    if (!file || (*file != '/' && !vf_is_protocol(file)) || !vf_is_plain(file))
        return "has no \"file\", which is an absolute path";
    if (!format || !is_format(format))
        return "has no \"format\" that is known: qcow2, raw, qed, qcow, vmdk, vdi, vhdx or vpc";
    if (json_object_object_length(disk) != 3)
        return "has more than \"name\", \"file\" and \"format\"";
    for (size_t i = 0; i < index; i++)
        if (strcmp(vf_json_string(vf_json_at(disks, i), "name"), name) == 0)
            return "has the name of another one";
    return NULL;
}

bool
vf_disks_declared(struct json_object *disks, const char *where, enum vmfrost_code code,
                  struct vmfrost_error *error)
{
    static const char form[] =
        "It is a list like [{\"name\": \"vd0\", \"file\": \"/vms/web.qcow2\", "
        "\"format\": \"qcow2\"}].";

    if (!json_object_is_type(disks, json_type_array)) {
        vf_fail(error, code, "%s: \"disks\" has to be a list", where);
        return vf_hint(error, "%s", form);
    }
    for (size_t i = 0; i < vf_json_length(disks); i++) {
        const char *fault = fault_of_declared(disks, i);

        if (fault) {
            vf_fail(error, code, "%s: disk %zu of \"disks\" %s", where, i + 1, fault);
            return vf_hint(error, "%s", form);
        }
    }
    return true;
}

/*
 * What is said to stay
 */

bool
vf_disks_are_names(struct json_object *names, const char *where, enum vmfrost_code code,
                   struct vmfrost_error *error)
{
    bool good = json_object_is_type(names, json_type_array);

    for (size_t i = 0; good && i < vf_json_length(names); i++) {
        const char *name = vf_json_text(vf_json_at(names, i));

        good = name && *name && vf_is_plain(name);
    }
    if (good)
        return true;
    vf_fail(error, code, "%s: \"persistentDisks\" has to be a list of names", where);
    return vf_hint(error, "It is a list like [\"vd1\", \"vd2\"].");
}

/* The names without `disk`. Owned by the caller. */
static struct json_object *
without(struct json_object *names, const char *disk)
{
    struct json_object *others = vf_json_new_array();

    for (size_t i = 0; i < vf_json_length(names); i++)
        if (strcmp(vf_json_text(vf_json_at(names, i)), disk) != 0)
            vf_json_append(others, json_object_get(vf_json_at(names, i)));
    return others;
}

bool
vf_store_set_persistent(struct vf_store *store, const char *name, const char *disk, bool persistent,
                        struct vmfrost_error *error)
{
    VF_CLEANUP(vf_vm_release) struct vf_vm vm = {.name = NULL};
    VF_AUTO_JSON struct json_object *settings = NULL;

    if (!*disk || !vf_is_plain(disk))
        return vf_fail(error, VMFROST_USAGE, "\"%s\" cannot be the name of a disk", disk);
    if (!vf_store_find(store, name, &vm, error))
        return false;
    if (!vm.in_inventory) {
        vf_fail(error, VMFROST_FAILED, "%s has no settings: it is not in the inventory", vm.name);
        return vf_hint(error, "Give it a name: vmfrost add NAME --qmp %s", vm.qmp);
    }
    VF_AUTO_FREE char *what = vf_printf("disk %s %s", vm.name, disk);
    VF_AUTO_FD int lock = vf_vm_lock(&vm, what, error);

    if (lock < 0 || !vf_settings_load(vm.folder, &settings, error))
        return false;
    if (!settings)
        return vf_fail(error, VMFROST_FAILED, "%s has just been removed", vm.name);
    /* Somebody may have changed the file by hand since it was found. */
    struct json_object *names = vf_json_array(settings, "persistentDisks");

    if (names && !vf_disks_are_names(names, vm.name, VMFROST_FAILED, error))
        return false;
    names = without(names, disk);
    if (persistent)
        vf_json_append(names, vf_json_new_string(disk));
    if (vf_json_length(names) > 0) {
        vf_json_add(settings, "persistentDisks", names);
    } else {
        json_object_put(names);
        json_object_object_del(settings, "persistentDisks");
    }
    return vf_settings_save(vm.folder, settings, error);
}

/*
 * What is known
 */

/* As a running QEMU's is placed: of a regular file the real path, of all else its own name. Owned
 * by the caller. */
static char *
visible_path(const char *file)
{
    struct stat about;
    char *real = NULL;

    if (*file == '/' && stat(file, &about) == 0 && S_ISREG(about.st_mode))
        real = realpath(file, NULL);
    return real ? real : vf_strdup(file);
}

struct json_object *
vf_disks_known(const struct vf_vm *vm, struct vmfrost_error *error)
{
    if (vf_json_length(vm->disks) == 0)
        return vf_disks_load(vm, error);
    struct json_object *document = vf_json_new_object(), *disks = vf_json_new_array();

    for (size_t i = 0; i < vf_json_length(vm->disks); i++) {
        struct json_object *declared = vf_json_at(vm->disks, i);
        VF_AUTO_FREE char *file = visible_path(vf_json_string(declared, "file"));
        struct json_object *disk =
            vf_json_strings("name", vf_json_string(declared, "name"), "file", file, "format",
                            vf_json_string(declared, "format"), NULL);

        if (strcmp(file, vf_json_string(declared, "file")) != 0)
            vf_json_add_string(disk, "link", vf_json_string(declared, "file"));
        vf_json_add_bool(disk, "eligible", true);
        vf_json_append(disks, disk);
    }
    vf_json_add_bool(document, "declared", true);
    vf_json_add(document, "disks", disks);
    return document;
}
