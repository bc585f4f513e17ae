/* SPDX-License-Identifier: MIT
 *
 * Records and the journal: {"records": {NAME: document}, "journal": [line, ...]}. A text instead of
 * a document, or of the whole journal, is written as it is.
 */
#include "store/journal.h"

#include "flows/history.h"
#include "flows/steps.h"
#include "fuzz.h"
#include "mutate.h"
#include "place.h"
#include "store/retention.h"
#include "vm/tree.h"

static struct vf_vm vm;
static char *records_folder;

static void
check_cut(struct json_object *document)
{
    struct vf_cut cut, same;

    if (!vf_cut_parse(&cut, document))
        return;
    VF_AUTO_JSON struct json_object *written = vf_cut_json(&cut);

    MUST(vf_cut_parse(&same, written));
    VF_AUTO_JSON struct json_object *again = vf_cut_json(&same);

    MUST(json_object_equal(written, again));
    MUST(!cut.names.top || strcmp(cut.names.top, cut.names.overlay) != 0);
    vf_cut_release(&cut);
    vf_cut_release(&same);
}

static void
check_records(void)
{
    static const struct vf_retention rules = {.keep_last = 1, .keep_daily = 2, .max_age_ms = 1000};
    struct vmfrost_error error = {.code = VMFROST_OK};
    VF_AUTO_JSON struct json_object *list = vf_record_list(&vm, &error);

    check_error(list, &error);
    for (size_t i = 0; i < vf_json_length(list); i++) {
        struct json_object *record = vf_json_at(list, i), *cuts = vf_json_array(record, "cuts");
        const char *name = vf_json_string(record, "name");
        struct vmfrost_error why = {.code = VMFROST_OK};

        MUST(name && vf_valid_name(name) && vf_json_string(record, "phase"));
        VF_AUTO_JSON struct json_object *loaded = vf_record_load(&vm, name, &why);

        check_error(loaded, &why);
        MUST(!loaded || json_object_equal(loaded, record));
        for (size_t k = 0; k < vf_json_length(cuts); k++)
            check_cut(vf_json_at(cuts, k));
    }
    VF_AUTO_JSON struct json_object *plan =
        vf_retention_plan(list, &rules, INT64_C(1763783000) * 1000);

    MUST(vf_json_length(vf_json_array(plan, "keep")) +
             vf_json_length(vf_json_array(plan, "remove")) ==
         vf_json_length(list));
}

static void
check_history(struct json_object *lines)
{
    struct vf_flow flow = {.vm = vm, .journal_lines = lines};

    vf_history_thaw_owed(&flow);
    vf_history_holds(&flow);
    vf_history_guard_lives(&flow);
    vf_history_was_offline(&flow);
    vf_history_left_stopped(&flow);
    vf_history_merge_had_begun(&flow);
    if (vf_history_adopt(&flow)) {
        MUST(strlen(flow.id) == 16);
        for (size_t i = 0; i < flow.cut_count; i++) {
            MUST(flow.cuts[i].names.sealed && flow.cuts[i].names.overlay);
            vf_history_merge_was_final(&flow, &flow.cuts[i]);
        }
    }
    for (size_t i = 0; i < flow.cut_count; i++)
        vf_cut_release(&flow.cuts[i]);
    free(flow.cuts);
    free(flow.agent.socket);
    free(flow.agent.port_id);
    free(flow.snapshot_name);
}

static void
check_journal(void)
{
    struct vmfrost_error error = {.code = VMFROST_OK};
    VF_AUTO_JSON struct json_object *lines = vf_journal_read(&vm, &error);

    MUST(!lines || error.code == VMFROST_OK);
    MUST(is_plain(error.text) && is_plain(error.next));
    for (size_t i = 0; i < vf_json_length(lines); i++)
        MUST(json_object_is_type(vf_json_at(lines, i), json_type_object) &&
             (i == 0 || vf_json_string(vf_json_at(lines, i), "state")));
    if (lines)
        check_history(lines);
}

/* As vf_journal_write() writes it. */
static void
put_journal(struct json_object *journal)
{
    VF_AUTO_FREE char *path = vf_printf("%s/journal", vm.folder);
    VF_AUTO_FREE char *text = vf_strdup("");

    if (!json_object_is_type(journal, json_type_array)) {
        put_document(path, journal);
        return;
    }
    for (size_t i = 0; i < vf_json_length(journal); i++) {
        char *longer = vf_printf("%s%s%s\n", text, i ? "\n\n" : "",
                                 json_object_to_json_string_ext(vf_json_at(journal, i),
                                                                JSON_C_TO_STRING_NOSLASHESCAPE));

        free(text);
        text = longer;
    }
    put(path, text, strlen(text));
}

static void
set_up(void)
{
    place_make();
    vm = (struct vf_vm){.name = vf_strdup("web"), .folder = vf_printf("%s/web", place)};
    records_folder = vf_printf("%s/records", vm.folder);
    MUST(mkdir(vm.folder, 0700) == 0);
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    VF_AUTO_JSON struct json_object *told = vf_json_parse((const char *)data, size, 64);
    struct json_object *records = vf_json_object(told, "records");

    if (!vm.folder)
        set_up();
    if (!told)
        return 0;
    place_empty(vm.folder);
    MUST(mkdir(records_folder, 0700) == 0);
    if (records) {
        json_object_object_foreach(records, name, document)
        {
            VF_AUTO_FREE char *path = vf_printf("%s/%s.json", records_folder, name);

            if (vf_valid_name(name))
                put_document(path, document);
        }
    }
    put_journal(member(told, "journal"));
    check_records();
    check_journal();
    return 0;
}
