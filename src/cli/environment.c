/* SPDX-License-Identifier: MIT */
#include "cli/environment.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "util/cleanup.h"
#include "util/json.h"
#include "util/mem.h"
#include "util/text.h"

static void
put(const char *name, const char *value)
{
    if (value && setenv(name, value, 1) < 0)
        abort(); /* no memory */
}

static bool
is_ours(const char *entry)
{
    static const char *const starts[] = {"VMFROST_IMAGE_",      "VMFROST_FORMAT_",
                                         "VMFROST_IMAGES=",     "VMFROST_VM=",
                                         "VMFROST_RECORD=",     "VMFROST_SNAPSHOT=",
                                         "VMFROST_CONSISTENCY="};

    for (size_t i = 0; i < sizeof starts / sizeof *starts; i++) {
        if (vf_starts_with(entry, starts[i]))
            return true;
    }
    return false;
}

static void
clear(void)
{
    for (size_t i = 0; environ && environ[i];) {
        VF_AUTO_FREE char *name = strndup(environ[i], strcspn(environ[i], "="));

        if (!is_ours(environ[i]) || unsetenv(name) < 0)
            i++;
    }
}

/* "WEB" of "web", "VIRTIO_0" of "virtio-0"; "WEB_2" if there is a "WEB" already. Owned by the
 * caller. */
static char *
suffix_of(const char *disk)
{
    char *suffix = vf_strdup(disk);
    VF_AUTO_FREE char *plain = NULL;

    for (char *at = suffix; *at; at++) {
        bool small = *at >= 'a' && *at <= 'z';
        bool fits = (*at >= 'A' && *at <= 'Z') || (*at >= '0' && *at <= '9');

        if (small)
            *at = (char)(*at - 'a' + 'A');
        else if (!fits)
            *at = '_';
    }
    plain = vf_strdup(suffix);
    for (int number = 2;; number++) {
        VF_AUTO_FREE char *name = vf_printf("VMFROST_IMAGE_%s", suffix);

        if (!getenv(name))
            return suffix;
        free(suffix);
        suffix = vf_printf("%s_%d", plain, number);
    }
}

/* The record, for its owner only. */
static bool
write_record(struct json_object *record, char **file_r, struct vmfrost_error *error)
{
    const char *folder = getenv("TMPDIR");
    VF_AUTO_FREE char *path =
        vf_printf("%s/vmfrost-XXXXXX.json", folder && *folder ? folder : "/tmp");
    const char *text = vf_json_print(record, JSON_C_TO_STRING_PRETTY | JSON_C_TO_STRING_SPACED |
                                                 JSON_C_TO_STRING_NOSLASHESCAPE);
    size_t length = strlen(text), written = 0;
    VF_AUTO_FD int fd = mkostemps(path, (int)strlen(".json"), O_CLOEXEC);

    if (fd < 0)
        return vf_fail(error, VMFROST_FAILED, "cannot make %s for the record: %s", path,
                       strerror(errno));
    *file_r = vf_strdup(path);
    while (written < length) {
        ssize_t got = write(fd, text + written, length - written);

        if (got < 0 && errno != EINTR)
            return vf_fail(error, VMFROST_FAILED, "cannot write the record to %s: %s", path,
                           strerror(errno));
        written += got > 0 ? (size_t)got : 0;
    }
    return true;
}

static bool
put_images(struct json_object *included, struct vmfrost_error *error)
{
    VF_AUTO_FREE char *all = vf_strdup("");

    for (size_t i = 0; i < vf_json_length(included); i++) {
        struct json_object *volume = vf_json_at(included, i);
        const char *disk = vf_json_string(volume, "name");
        const char *image = vf_json_string(volume, "image");

        if (!disk || !image)
            return vf_fail(error, VMFROST_FAILED, "the record does not name all images");
        /* They are told apart by line breaks. */
        if (strchr(image, '\n'))
            return vf_fail(error, VMFROST_FAILED,
                           "disk %s: there is a line break in the name of its image", disk);
        VF_AUTO_FREE char *suffix = suffix_of(disk);
        VF_AUTO_FREE char *image_name = vf_printf("VMFROST_IMAGE_%s", suffix);
        VF_AUTO_FREE char *format_name = vf_printf("VMFROST_FORMAT_%s", suffix);
        char *longer = vf_printf("%s%s%s", all, i ? "\n" : "", image);

        free(all);
        all = longer;
        put(image_name, image);
        put(format_name, vf_json_string(volume, "format"));
    }
    put("VMFROST_IMAGES", all);
    return true;
}

bool
environment_set(struct json_object *record, char **file_r, struct vmfrost_error *error)
{
    *file_r = NULL;
    clear();
    put("VMFROST_VM", vf_json_string(record, "vm"));
    put("VMFROST_SNAPSHOT", vf_json_string(record, "name"));
    put("VMFROST_CONSISTENCY", vf_json_string(record, "consistency"));
    if (!put_images(vf_json_array(vf_json_object(record, "snapshotVolumes"), "included"), error) ||
        !write_record(record, file_r, error))
        return false;
    put("VMFROST_RECORD", *file_r);
    return true;
}
