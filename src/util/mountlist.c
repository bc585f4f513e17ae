/* SPDX-License-Identifier: MIT */
#include "util/mountlist.h"

#include <string.h>

#include "util/cleanup.h"
#include "util/json.h"
#include "util/mem.h"
#include "util/text.h"

#define LENGTH_MOST 4096

bool
vf_mountlist_has(struct json_object *points, const char *point)
{
    for (size_t i = 0; i < vf_json_length(points); i++) {
        const char *other = vf_json_text(vf_json_at(points, i));

        if (other && strcmp(other, point) == 0)
            return true;
    }
    return false;
}

static void
add(struct json_object *points, const char *path)
{
    size_t length = strlen(path);

    while (length > 1 && path[length - 1] == '/')
        length--;
    vf_json_append(points, vf_json_new_text(path, length));
}

/* One word behind the base. */
static bool
read_word(const char *word, struct vf_mountlist *list)
{
    bool out = word[0] == '-';
    const char *path = word + out;

    if (path[0] != '/' || strlen(path) >= LENGTH_MOST)
        return false;
    /* Whatever is named beside "all", or left out beside names, says nothing. */
    if (list->base == (out ? VF_MOUNTS_NAMED : VF_MOUNTS_ALL))
        return false;
    add(out ? list->without : list->with, path);
    return true;
}

static bool
is_plain(const char *text)
{
    VF_AUTO_FREE char *plain = vf_strdup(text);

    vf_sanitize(plain);
    return strcmp(plain, text) == 0;
}

bool
vf_mountlist_parse(const char *text, struct vf_mountlist *list)
{
    VF_AUTO_FREE char *words = vf_strdup(text);
    char *rest = words, *word;
    bool first = true;

    *list = (struct vf_mountlist){VF_MOUNTS_CUT, vf_json_new_array(), vf_json_new_array()};
    if (!is_plain(text))
        return false;
    while ((word = strsep(&rest, ","))) {
        bool all = strcmp(word, "all") == 0, base = all || strcmp(word, "cut") == 0;

        if (first && base)
            list->base = all ? VF_MOUNTS_ALL : VF_MOUNTS_CUT;
        else if (first && word[0] == '/')
            list->base = VF_MOUNTS_NAMED;
        if (!(first && base) && !read_word(word, list))
            return false;
        first = false;
    }
    return true;
}

void
vf_mountlist_release(struct vf_mountlist *list)
{
    json_object_put(VF_STEAL(list->with));
    json_object_put(VF_STEAL(list->without));
}
