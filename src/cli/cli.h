/* SPDX-License-Identifier: MIT
 *
 * The command `vmfrost`: what its parts share.
 *
 * One run is one struct cli. main.c picks the command from the table and fills in the options and
 * the target; the command's run function starts operations of the library, waits for them, and
 * prints. Only <vmfrost.h> and src/util are used: whatever the command can do, any program can.
 */
#ifndef VF_CLI_CLI_H
#define VF_CLI_CLI_H

#include <stdbool.h>
#include <stddef.h>

#include "cli/out.h"
#include "vmfrost.h"

struct cli;

enum cli_option {
    OPTION_JSON,
    OPTION_VERBOSE,
    OPTION_QUIET,
    OPTION_STATE_DIR,
    OPTION_LOG,
    OPTION_TRACE,
    OPTION_NO_COLOR,
    OPTION_HELP,
    OPTION_VERSION,
    OPTION_QMP,
    OPTION_AGENT,
    OPTION_SET,
    OPTION_DEADLINE,
    OPTION_FROZEN_LIMIT,
    OPTION_THAW_WAIT,
    OPTION_QUIESCE,
    OPTION_EXCLUDE,
    OPTION_INCLUDE,
    OPTION_PERSISTENT,
    OPTION_METHOD,
    OPTION_FLUSH,
    OPTION_FREEZE,
    OPTION_NO_PRIME,
    OPTION_FOR,
    OPTION_WAIT,
    OPTION_ALL,
    OPTION_KEEP_LAST,
    OPTION_KEEP_HOURLY,
    OPTION_KEEP_DAILY,
    OPTION_KEEP_WEEKLY,
    OPTION_MAX_AGE,
    OPTION_FAILED,
    OPTION_YES,
    OPTION_EVENTS,
    OPTION_RESET,
    OPTION_DISCARD,
    OPTION_KEEP_NAME,
    OPTION_FORMAT,
    OPTION_DISK,
    OPTION_COMPRESS,
    OPTION__N,
};

/* An option as one command takes it; `help` tells its default. Lists end with NULL. */
struct option_use {
    enum cli_option option;
    const char *help;
};

/* What stands behind a command. */
enum target {
    TARGET_NONE,
    TARGET_COMMAND,      /* [COMMAND] */
    TARGET_NEW_NAME,     /* NAME: of a VM, new or not */
    TARGET_NAME,         /* NAME of the inventory */
    TARGET_VM,           /* VM */
    TARGET_VM_OR_ALL,    /* [VM] */
    TARGET_VM_SNAPSHOT,  /* VM[@NAME] */
    TARGET_VMS_SNAPSHOT, /* VM[@NAME], VM... [@NAME], or [@NAME] with --all */
    TARGET_SNAPSHOT,     /* VM@NAME */
    TARGET_SNAPSHOT_TO,  /* VM@NAME DEST */
    TARGET_VM_DISK,      /* VM [DISK] */
    TARGET_ACTION,       /* [ACTION [WORD]...] */
    TARGET_WORDS,        /* anything, not looked at */
};

enum command_kind {
    COMMAND_READS,    /* --json: one document */
    COMMAND_OPERATES, /* --json: one event per line, then the result */
};

struct command {
    const char *name;
    const char *help; /* one line, for the overview; NULL: hidden */
    const char *synopsis;
    const char *about;
    const char *examples;
    enum command_kind kind;
    enum target target;
    const struct option_use *options;
    bool stateless;      /* run() needs no context, or makes its own */
    bool takes_command;  /* of the user's, behind "--" */
    const char *actions; /* of TARGET_ACTION: "set|remove" */
    enum vmfrost_code (*run)(struct cli *cli);
};

/* NULL-terminated, in the order of the overview. */
extern const struct command *const commands[];
const struct command *command_find(const char *name);

/* The values of the options. */
struct cli_options {
    bool json, quiet, no_color, help, version, all, yes;
    int verbose;
    const char *state_dir, *log, *trace, *agent, *events;
    char *qmp; /* with a slash in it */
    const char **settings;
    size_t setting_count;
    int64_t freeze_limit_ms, thaw_wait_ms;
    struct vmfrost_snapshot_options snapshot;
    struct vmfrost_prune_options prune;
    struct vmfrost_restore_options restore;
    struct vmfrost_export_options export;
    struct vmfrost_clone_options clone;
    const char **exclude, **include;
    size_t exclude_count, include_count;
    enum { PERSISTENT_ASK, PERSISTENT_YES, PERSISTENT_NO } persistent;
};

struct cli {
    const struct command *command; /* NULL before it is known */
    struct cli_options options;
    char *vm;   /* name or path; NULL: none was given, or several */
    char **vms; /* of TARGET_VMS_SNAPSHOT, where there are several */
    size_t vm_count;
    char *snapshot;     /* name; NULL: none was given */
    const char *disk;   /* NULL: none was given */
    const char *dest;   /* of TARGET_SNAPSHOT_TO */
    const char **words; /* of TARGET_COMMAND, TARGET_ACTION, TARGET_WORDS and a command;
                           NULL-terminated */
    struct out out, err;
    struct out *log;           /* the file of --log; NULL: none */
    struct trace *trace;       /* of --trace; NULL: none */
    struct live *live;         /* whose line may stand on the terminal; NULL: nobody's */
    struct json_object *shown; /* array: warnings that were shown while they happened */
    bool stopped;              /* a signal has asked to stop */
    const char *reprieve;      /* said to the first signal, and the next one stops; NULL: it does */
    struct ev_loop *loop;
    struct vmfrost *context;
};

/* An exit code of the command alone: the snapshot was taken, and pruning after it failed. */
#define CLI_NOT_PRUNED ((enum vmfrost_code)7)

/* The VM, or the snapshot, as this command line's reader would write it: "web@before" or "--qmp
 * /run/web.qmp before". `snapshot` NULL: only the VM. Owned by the caller. */
char *cli_words_for(const char *vm, const char *snapshot);

extern const struct command command_discover, command_add, command_remove, command_status,
    command_check, command_snapshot, command_list, command_show, command_restore, command_delete,
    command_prune, command_with, command_freeze, command_thaw, command_recover, command_verify,
    command_disk, command_storage, command_export, command_clone, command_help, command_version,
    command_complete;

#endif
