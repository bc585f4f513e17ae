/* SPDX-License-Identifier: MIT */
#include "wire/outcome.h"

#include <string.h>

#include "util/json.h"
#include "wire/channel.h"

bool
vf_reply_read(struct json_object *message, struct vf_reply *reply_r, char words[VF_WORDS_SIZE])
{
    struct json_object *value = NULL, *error = NULL;
    bool returned = json_object_object_get_ex(message, "return", &value);
    bool refused = json_object_object_get_ex(message, "error", &error);

    if (returned == refused || (refused && !json_object_is_type(error, json_type_object)))
        return false;
    words[0] = '\0';
    if (refused) {
        const char *desc = vf_json_string(error, "desc");

        if (!desc || !*desc)
            desc = "it gave no reason";
        vf_channel_line(words, VF_WORDS_SIZE, desc, strlen(desc));
    }
    *reply_r = (struct vf_reply){refused ? VF_REFUSED : VF_OK, value, words};
    return true;
}

/* 'Failed to get "write" lock', 'Failed to get shared "write" lock'. */
bool
vf_words_tell_of_lock(const char *words)
{
    const char *failed = strstr(words, "Failed to get ");

    return failed && strstr(failed, "\" lock");
}
