/* SPDX-License-Identifier: MIT
 *
 * What users and hosts put into the state folder: {"vm": vm.json, "storage": storage.json, "disks":
 * disks.json, "links": links.json, "match": {"path", "protocol", "format"}}. A text instead of a
 * document is written as it is.
 */
#include "store/store.h"

#include "flows/steps.h"
#include "fuzz.h"
#include "mutate.h"
#include "place.h"
#include "store/classes.h"
#include "store/disks.h"

static struct vf_store *store;
static char *folder;

static void
check_classes(struct json_object *match)
{
    const char *path = vf_json_string(match, "path"), *protocol = vf_json_string(match, "protocol"),
               *format = vf_json_string(match, "format");
    struct vmfrost_error error = {.code = VMFROST_OK}, again = {.code = VMFROST_OK};
    struct vf_classes classes;
    bool good = vf_classes_load(store, &classes, &error);
    VF_AUTO_JSON struct json_object *shown = vf_classes_json(store, &again);

    check_error(good, &error);
    check_error(shown, &again);
    MUST(good == (shown != NULL) && (good || classes.count == 0));
    for (size_t i = 0; i < classes.count; i++) {
        const struct vf_class *class = &classes.list[i];

        MUST(vf_valid_name(class->name) && vf_class_named(&classes, class->name) == class);
        MUST(!class->overlay_folder || class->overlay_folder[0] == '/');
        MUST(class->cluster_size >= 0 && (class->cluster_size & (class->cluster_size - 1)) == 0);
        MUST(class->min_free >= -1);
    }
    const struct vf_class *of =
        vf_class_of(&classes, path ? path : "", protocol ? protocol : "", format ? format : "");

    MUST(!of || (!of->protocol || strcmp(of->protocol, protocol ? protocol : "") == 0));
    MUST(!of || (!of->format || strcmp(of->format, format ? format : "") == 0));
    vf_classes_release(&classes);
}

static void
check_disks(const struct vf_vm *vm)
{
    struct vmfrost_error error = {.code = VMFROST_OK};
    VF_AUTO_JSON struct json_object *known = vf_disks_known(vm, &error);
    struct json_object *disks = vf_json_array(known, "disks");

    MUST(!known || (disks && error.code == VMFROST_OK));
    MUST(is_plain(error.text));
    for (size_t i = 0; i < vf_json_length(disks); i++) {
        struct json_object *disk = vf_json_at(disks, i);

        MUST(vf_json_string(disk, "name"));
        if (vf_json_bool(disk, "eligible", false))
            MUST(vf_json_string(disk, "file") && vf_json_string(disk, "format"));
    }
}

static void
check_links(const struct vf_vm *vm)
{
    struct vf_flow flow = {.vm = *vm};
    struct vmfrost_error error = {.code = VMFROST_OK};
    bool sound = vf_links_sound(&flow, &error);
    VF_AUTO_FREE char *top = vf_links_top(&flow, "/images/.web.qcow2.0123456789abcdef");

    check_error(sound, &error);
    MUST(sound || !top);
    MUST(sound || !vf_links_has(&flow, "/images/.web.qcow2.0123456789abcdef"));
    vf_links_needed(&flow, "/images/.web.qcow2.0123456789abcdef");
}

static void
check_vm(void)
{
    struct vmfrost_error error = {.code = VMFROST_OK}, again = {.code = VMFROST_OK};
    VF_AUTO_JSON struct json_object *vms = vf_store_vms(store, &again);
    struct vf_vm vm;
    bool good = vf_store_find(store, "web", &vm, &error);

    check_error(good, &error);
    check_error(vms, &again);
    if (!good)
        return;
    MUST(vm.in_inventory && strcmp(vm.name, "web") == 0);
    MUST(vm.qmp && (vm.qmp[0] == '/' || vf_starts_with(vm.qmp, "tcp:")));
    MUST(!vm.overlay_folder || vm.overlay_folder[0] == '/');
    MUST(vm.deadline_ms >= 0 && vm.frozen_limit_ms >= 0 && vm.copy_speed >= 0 &&
         vm.warn_depth >= 0 && vm.warn_age_ms >= 0);
    check_disks(&vm);
    check_links(&vm);
    vf_vm_release(&vm);
}

static void
set_up(void)
{
    struct vmfrost_error error = {.code = VMFROST_OK};
    VF_AUTO_FREE char *vms = NULL;

    place_make();
    store = vf_store_open(place, &error);
    MUST(store);
    vms = vf_printf("%s/vms", place);
    folder = vf_printf("%s/web", vms);
    mkdir(vms, 0700);
    MUST(mkdir(folder, 0700) == 0);
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char *const names[] = {"vm", "disks", "links"};
    VF_AUTO_JSON struct json_object *told = vf_json_parse((const char *)data, size, 64);

    if (!store)
        set_up();
    if (!told)
        return 0;
    VF_AUTO_FREE char *storage = vf_printf("%s/storage.json", place);

    unlink(storage);
    place_empty(folder);
    put_document(storage, member(told, "storage"));
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        VF_AUTO_FREE char *path = vf_printf("%s/%s.json", folder, names[i]);

        put_document(path, member(told, names[i]));
    }
    check_classes(member(told, "match"));
    check_vm();
    return 0;
}
