/* SPDX-License-Identifier: MIT
 *
 * The inventory: discover, add, remove.
 */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cli/cli.h"
#include "cli/job.h"
#include "cli/report.h"
#include "cli/target.h"
#include "cli/vm_view.h"
#include "util/cleanup.h"
#include "util/json.h"
#include "util/mem.h"
#include "util/text.h"

static enum vmfrost_code
run_discover(struct cli *cli)
{
    struct job job;

    job_init(&job, cli, NULL, false);
    job.op = vmfrost_discover(cli->context, job_on_done, &job);
    jobs_wait(cli, &job, 1);

    enum vmfrost_code code = job_end_reading(cli, &job);

    if (code == VMFROST_OK && !cli->options.json)
        view_machines(cli, vf_json_array(job.outcome.document, "machines"));
    job_release(&job);
    return code;
}

const struct command command_discover = {
    .name = "discover",
    .help = "the running QEMUs of this host, their sockets and agents",
    .synopsis = "[OPTION]...",
    .about =
        "Lists the QEMU processes that you may look at: their QMP sockets, the sockets of their\n"
        "guest agents and whether an agent has its port open, and the name in the inventory if\n"
        "there is one. Run as root to see the machines of all users.\n",
    .examples = "  vmfrost discover\n"
                "  vmfrost discover --json | jq -r '.machines[].qmp[0]'\n",
    .kind = COMMAND_READS,
    .target = TARGET_NONE,
    .run = run_discover,
};

/* A path that stays right in another folder. Owned by the caller. */
static char *
absolute(const char *path)
{
    VF_AUTO_FREE char *folder = NULL;

    if (*path == '/' || vf_starts_with(path, "tcp:"))
        return vf_strdup(path);
    folder = getcwd(NULL, 0);
    if (!folder)
        return target_path(path);
    return vf_printf("%s/%s", folder, vf_starts_with(path, "./") ? path + 2 : path);
}

/* "frozen-limit" is a key as good as "frozenLimit". */
static char *
key_of(const char *text, size_t length)
{
    char *key = vf_alloc(length + 1), *to = key;

    for (size_t i = 0; i < length; i++) {
        bool joint = text[i] == '-' && i + 1 < length && text[i + 1] >= 'a' && text[i + 1] <= 'z';

        if (joint)
            *to++ = (char)(text[++i] - 'a' + 'A');
        else
            *to++ = text[i];
    }
    return key;
}

/* The settings that the VM has already; an empty object for a new one; NULL on error. */
static struct json_object *
present_settings(struct cli *cli, struct vmfrost_error *error, bool *known_r)
{
    VF_AUTO_FREE char *text = NULL;
    VF_AUTO_JSON struct json_object *vms = NULL;

    *known_r = false;
    if (vmfrost_vms(cli->context, &text, error) != VMFROST_OK)
        return NULL;
    vms = vf_json_parse(text, strlen(text), 16);
    for (size_t i = 0; i < vf_json_length(vms); i++) {
        struct json_object *vm = vf_json_at(vms, i);
        const char *name = vf_json_string(vm, "name");

        if (!name || strcmp(name, cli->vm) != 0)
            continue;
        *known_r = true;
        struct json_object *settings = vf_json_object(vm, "settings");
        return settings ? json_object_get(settings) : vf_json_new_object();
    }
    return vf_json_new_object();
}

/* False after a usage error was reported. */
static bool
change_settings(struct cli *cli, struct json_object *settings)
{
    const struct cli_options *options = &cli->options;

    if (options->qmp) {
        VF_AUTO_FREE char *path = absolute(options->qmp);

        vf_json_add_string(settings, "qmp", path);
    }
    if (options->agent) {
        VF_AUTO_FREE char *path = absolute(options->agent);

        vf_json_add_string(settings, "agent", path);
    }
    for (size_t i = 0; i < options->setting_count; i++) {
        const char *equals = strchr(options->settings[i], '=');

        if (!equals || equals == options->settings[i]) {
            report_usage(cli, "--set '%s' is not of the form KEY=VALUE", options->settings[i]);
            return false;
        }
        VF_AUTO_FREE char *key =
            key_of(options->settings[i], (size_t)(equals - options->settings[i]));

        if (equals[1] == '[') {
            struct json_object *list = vf_json_parse(equals + 1, strlen(equals + 1), 4);

            if (!list) {
                report_usage(cli, "--set '%s': its value is no JSON", options->settings[i]);
                return false;
            }
            vf_json_add(settings, key, list);
        } else if (equals[1])
            vf_json_add_string(settings, key, equals + 1);
        else
            json_object_object_del(settings, key);
    }
    return true;
}

static enum vmfrost_code
run_add(struct cli *cli)
{
    VF_AUTO_JSON struct json_object *settings = NULL;
    struct vmfrost_error error = {.code = VMFROST_OK};
    bool known;

    settings = present_settings(cli, &error, &known);
    if (!settings)
        return report_error(cli, &error);
    if (!known && !cli->options.qmp)
        return report_usage(cli, "where is %s? A new VM needs --qmp PATH", cli->vm);
    if (!change_settings(cli, settings))
        return VMFROST_USAGE;
    if (vmfrost_add(cli->context, cli->vm, vf_json_print(settings, JSON_C_TO_STRING_SPACED),
                    &error) != VMFROST_OK)
        return report_error(cli, &error);
    if (cli->options.json) {
        VF_AUTO_JSON struct json_object *document = vf_json_strings("name", cli->vm, NULL);

        vf_json_add(document, "settings", json_object_get(settings));
        report_json(cli, document);
    } else if (!cli->options.quiet) {
        out_text(&cli->out, STYLE_BOLD, "%s", cli->vm);
        out_text(&cli->out, STYLE_PLAIN, "  %s; next: vmfrost check %s\n",
                 known ? "changed" : "added", cli->vm);
    }
    return VMFROST_OK;
}

const struct command command_add = {
    .name = "add",
    .help = "remember a VM, or change its settings",
    .synopsis = "NAME --qmp PATH [--agent PATH] [--set KEY=VALUE]...",
    .about =
        "Gives a VM a name. The socket of the guest agent is found through QMP. For a VM that is\n"
        "known already, only what is given is changed.\n"
        "\n"
        "Settings: deadline, frozen-limit (durations), quiesce, method, freeze (as for snapshot),\n"
        "prime (on, off), emergency-thaw (off, sysrq), os (linux, windows), overlay-folder (a\n"
        "path), disks (a JSON list, for a VM that was never seen running), warn-depth (a number),\n"
        "warn-age (a duration), keep-last, keep-hourly, keep-daily, keep-weekly (numbers), max-age "
        "(a\n"
        "duration; for prune). KEY= with nothing behind it takes a setting\n"
        "back.\n",
    .examples = "  vmfrost add web --qmp /run/web.qmp\n"
                "  vmfrost add web --set deadline=10m --set quiesce=require\n"
                "  vmfrost add db --qmp ./db.qmp --set os=windows --set frozen-limit=8s\n",
    .kind = COMMAND_READS,
    .target = TARGET_NEW_NAME,
    .options =
        (const struct option_use[]){
            {OPTION_QMP, "the QMP socket; needed for a new VM"},
            {OPTION_AGENT, "the guest agent's socket (default: asked from QEMU)"},
            {OPTION_SET, "a setting; may be given several times"},
            {0, NULL},
        },
    .run = run_add,
};

static enum vmfrost_code
run_remove(struct cli *cli)
{
    struct vmfrost_error error = {.code = VMFROST_OK};

    if (vmfrost_remove(cli->context, cli->vm, &error) != VMFROST_OK)
        return report_error(cli, &error);
    if (cli->options.json) {
        VF_AUTO_JSON struct json_object *document = vf_json_strings("name", cli->vm, NULL);

        vf_json_add_bool(document, "removed", true);
        report_json(cli, document);
    } else if (!cli->options.quiet) {
        out_text(&cli->out, STYLE_BOLD, "%s", cli->vm);
        out_raw(&cli->out, "  forgotten; the VM itself was not touched\n");
    }
    return VMFROST_OK;
}

const struct command command_remove = {
    .name = "remove",
    .help = "forget a VM that has no snapshots",
    .synopsis = "NAME [OPTION]...",
    .about = "Forgets a VM. The VM and its images are not touched. One that still has snapshot\n"
             "records is refused: delete those first.\n",
    .examples = "  vmfrost remove web\n",
    .kind = COMMAND_READS,
    .target = TARGET_NAME,
    .run = run_remove,
};
