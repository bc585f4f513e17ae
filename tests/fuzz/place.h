/* SPDX-License-Identifier: MIT
 *
 * A folder for targets that need files, gone when the program ends.
 */
#ifndef TESTS_FUZZ_PLACE_H
#define TESTS_FUZZ_PLACE_H

#include <fcntl.h>
#include <ftw.h>
#include <sys/stat.h>
#include <unistd.h>

#include "fuzz.h"

/* Real path; NULL: not made yet. */
static char *place;

static int
place_remove_one(const char *path, const struct stat *about, int flag, struct FTW *where)
{
    (void)about, (void)flag;
    return where->level == 0 ? 0 : remove(path);
}

static inline void
place_empty(const char *folder)
{
    nftw(folder, place_remove_one, 16, FTW_DEPTH | FTW_PHYS);
}

static void
place_end(void)
{
    place_empty(place);
    rmdir(place);
    free(place);
}

static inline void
place_make(void)
{
    char made[] = "/tmp/vmfrost-fuzz-XXXXXX";

    if (place)
        return;
    MUST(mkdtemp(made));
    place = realpath(made, NULL);
    MUST(place && atexit(place_end) == 0);
}

static inline void
put(const char *path, const void *bytes, size_t length)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);

    MUST(fd >= 0 && write(fd, bytes, length) == (ssize_t)length);
    close(fd);
}

/* A text is written as it is, everything else as JSON; nothing of what is not there. */
static inline void
put_document(const char *path, struct json_object *document)
{
    bool text = json_object_is_type(document, json_type_string);

    if (!document)
        return;
    const char *bytes = text ? json_object_get_string(document)
                             : json_object_to_json_string_ext(document, JSON_C_TO_STRING_PLAIN);

    put(path, bytes, text ? (size_t)json_object_get_string_len(document) : strlen(bytes));
}

static inline struct json_object *
member(struct json_object *object, const char *key)
{
    struct json_object *value = NULL;

    if (json_object_is_type(object, json_type_object))
        json_object_object_get_ex(object, key, &value);
    return value;
}

#endif
