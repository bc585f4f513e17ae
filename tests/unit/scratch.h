/* SPDX-License-Identifier: MIT
 *
 * A temporary folder for a test of the store, and what such tests do all the time.
 */
#ifndef TESTS_UNIT_SCRATCH_H
#define TESTS_UNIT_SCRATCH_H

#include <fcntl.h>
#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "../tap.h"
#include "store/store.h"
#include "util/cleanup.h"
#include "util/json.h"
#include "util/mem.h"

/* Real path of a new folder. Owned by the caller. */
static inline char *
scratch_new(void)
{
    char made[] = "/tmp/vmfrost-test-XXXXXX";
    char *real = mkdtemp(made) ? realpath(made, NULL) : NULL;

    if (!real) {
        printf("Bail out! cannot make a temporary folder\n");
        exit(EXIT_FAILURE);
    }
    return real;
}

static inline int
scratch_remove_one(const char *path, const struct stat *about, int flag, struct FTW *where)
{
    (void)about;
    (void)flag;
    (void)where;
    return remove(path);
}

static inline void
scratch_remove(char *folder)
{
    nftw(folder, scratch_remove_one, 16, FTW_DEPTH | FTW_PHYS);
    free(folder);
}

static inline bool
put_file(const char *path, const char *content)
{
    FILE *file = fopen(path, "we");

    return file && fputs(content, file) >= 0 && fclose(file) == 0;
}

/* Adds to a file, with NULs if there are any. */
static inline bool
add_to_file(const char *path, const char *content, size_t length)
{
    int fd = open(path, O_WRONLY | O_APPEND | O_CLOEXEC);
    bool written = fd >= 0 && write(fd, content, length) == (ssize_t)length;

    if (fd >= 0)
        close(fd);
    return written;
}

static inline bool
is_there(const char *path)
{
    struct stat about;

    return lstat(path, &about) == 0;
}

static inline int
mode_of(const char *path)
{
    struct stat about;

    return lstat(path, &about) == 0 ? (int)(about.st_mode & 07777) : -1;
}

static inline struct json_object *
json(const char *text)
{
    struct json_object *value = vf_json_parse(text, strlen(text), 16);

    if (!value) {
        printf("Bail out! no JSON in the test itself: %s\n", text);
        exit(EXIT_FAILURE);
    }
    return value;
}

/* The VM of a path in this state folder, which must work. */
static inline struct vf_vm
vm_at(struct vf_store *store, const char *path)
{
    struct vmfrost_error why = {.code = VMFROST_OK};
    struct vf_vm found;

    if (!vf_store_find(store, path, &found, &why)) {
        printf("Bail out! %s\n", why.text);
        exit(EXIT_FAILURE);
    }
    return found;
}

static inline bool
add_vm(struct vf_store *store, const char *name, const char *settings, struct vmfrost_error *error)
{
    VF_AUTO_JSON struct json_object *value = json(settings);

    memset(error, 0, sizeof *error);
    return vf_store_add(store, name, value, error);
}

#endif
