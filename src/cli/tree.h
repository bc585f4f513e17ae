/* SPDX-License-Identifier: MIT
 *
 * Snapshots as a tree: in which order, and with what before their names.
 *
 * Each one stands below the one that it builds on. What does not branch is not indented, so that
 * a VM that was never restored has a plain list.
 */
#ifndef VF_CLI_TREE_H
#define VF_CLI_TREE_H

#include <json-c/json.h>
#include <stdbool.h>
#include <stddef.h>

struct tree_row {
    struct json_object *record; /* borrowed */
    char *branch;               /* before its name; "" if it is not indented */
};

struct tree {
    struct tree_row *rows; /* as many as there are records */
    size_t count;
};

/* `records` have "vm" (those of one VM stand together), "name" and "parent". Whatever they claim,
 * each one gets one row. `utf8`: lines may be drawn. */
void tree_make(struct tree *tree, struct json_object *records, bool utf8);
void tree_release(struct tree *tree);

#define AUTO_TREE VF_CLEANUP(tree_release)

#endif
