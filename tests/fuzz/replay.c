/* SPDX-License-Identifier: MIT
 *
 * Plays the corpus of a fuzz target, tests/fuzz/corpus/NAME for the program fuzz-NAME, or the files
 * that are given. Needs no libFuzzer, so that every compiler and every build can do it.
 */
#include <dirent.h>
#include <errno.h>

#include "../tap.h"
#include "fuzz.h"
#include "util/file.h"

#define MOST ((size_t)1 << 20)

static void
play(const char *path)
{
    size_t length = 0;
    VF_AUTO_FREE char *text = vf_read_file(path, MOST, &length);
    /* Without anything behind it that a sanitizer would not know of. */
    VF_AUTO_FREE uint8_t *input = vf_alloc(length ? length : 1);

    /* Whatever ends this program, the name of the input stands above it. */
    diag("%s", path);
    if (!text) {
        ok(false, "cannot read it: %s", strerror(errno));
        return;
    }
    memcpy(input, text, length);
    ok(LLVMFuzzerTestOneInput(input, length) == 0, "%s", vf_name_of(path));
}

static int
is_visible(const struct dirent *entry)
{
    return entry->d_name[0] != '.';
}

static void
play_all(const char *folder)
{
    struct dirent **entries = NULL;
    int count = scandir(folder, &entries, is_visible, alphasort);

    ok(count > 0, "there is a corpus");
    for (int i = 0; i < count; i++) {
        VF_AUTO_FREE char *path = vf_printf("%s/%s", folder, entries[i]->d_name);

        play(path);
        free(entries[i]);
    }
    free(entries);
}

int
main(int count, char **arguments)
{
    const char *name = vf_name_of(arguments[0]);
    VF_AUTO_FREE char *folder =
        vf_printf("tests/fuzz/corpus/%s", vf_starts_with(name, "fuzz-") ? name + 5 : name);

    if (count < 2)
        play_all(folder);
    for (int i = 1; i < count; i++)
        play(arguments[i]);
    return done_testing();
}
