/* SPDX-License-Identifier: MIT
 *
 * For tests that need real images: qemu-img and its like, in a temporary folder.
 */
#ifndef TESTS_UNIT_IMAGES_H
#define TESTS_UNIT_IMAGES_H

#include <spawn.h>
#include <sys/wait.h>

#include "scratch.h"

extern char **environ;

static char *folder;

/* Runs a program in the temporary folder; false unless it says that all is well. */
static inline bool
run(const char *const *arguments)
{
    posix_spawn_file_actions_t actions;
    pid_t pid;
    int status = -1;

    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_addchdir_np(&actions, folder);
    posix_spawn_file_actions_addopen(&actions, STDOUT_FILENO, "/dev/null", O_WRONLY, 0);
    int failed =
        posix_spawnp(&pid, arguments[0], &actions, NULL, (char *const *)arguments, environ);
    posix_spawn_file_actions_destroy(&actions);
    return !failed && waitpid(pid, &status, 0) == pid && status == 0;
}
#define RUN(...) run((const char *const[]){__VA_ARGS__, NULL})

static inline char *
path_of(const char *name)
{
    return vf_printf("%s/%s", folder, name);
}

#endif
