/* SPDX-License-Identifier: MIT */
#include "cli/tree.h"

#include <stdlib.h>
#include <string.h>

#include "util/cleanup.h"
#include "util/json.h"
#include "util/mem.h"

#define NONE ((size_t)-1)

/* The records of one VM, and who builds on whom. */
struct grove {
    struct json_object *records; /* borrowed: of all VMs */
    size_t first, count;
    size_t *parents; /* counted from `first`; NONE */
    bool *shown;
    bool utf8;
};

static bool
same(const char *a, const char *b)
{
    return a && b ? strcmp(a, b) == 0 : a == b;
}

static struct json_object *
record_at(const struct grove *grove, size_t at)
{
    return vf_json_at(grove->records, grove->first + at);
}

static size_t
find(const struct grove *grove, const char *name)
{
    for (size_t i = 0; name && i < grove->count; i++)
        if (same(vf_json_string(record_at(grove, i), "name"), name))
            return i;
    return NONE;
}

/* The child of `at` behind the child `after`; NONE for the first, and at the end. */
static size_t
next_child(const struct grove *grove, size_t at, size_t after)
{
    for (size_t i = after + 1; i < grove->count; i++)
        if (grove->parents[i] == at && !grove->shown[i])
            return i;
    return NONE;
}

static bool
branches(const struct grove *grove)
{
    for (size_t i = 0; i < grove->count; i++) {
        size_t first = next_child(grove, i, NONE);

        if (first != NONE && next_child(grove, i, first) != NONE)
            return true;
    }
    return false;
}

static void
show(struct tree *tree, struct grove *grove, size_t at, const char *branch)
{
    VF_GROW(tree->rows, tree->count);
    tree->rows[tree->count++] = (struct tree_row){record_at(grove, at), vf_strdup(branch)};
    grove->shown[at] = true;
}

/* A record and all that builds on it; `inside` is what stands before the lines of its branch. */
static void
show_branch(struct tree *tree, struct grove *grove, size_t at, const char *inside)
{
    size_t child = next_child(grove, at, NONE);

    while (child != NONE && next_child(grove, at, child) == NONE) {
        show(tree, grove, child, inside);
        at = child;
        child = next_child(grove, at, NONE);
    }
    while (child != NONE) {
        size_t next = next_child(grove, at, child);
        const char *fork = grove->utf8    ? next == NONE ? "└─ " : "├─ "
                           : next == NONE ? "`- "
                                          : "|- ";
        const char *line = next == NONE ? "   " : grove->utf8 ? "│  " : "|  ";
        VF_AUTO_FREE char *first = vf_printf("%s%s", inside, fork);
        VF_AUTO_FREE char *others = vf_printf("%s%s", inside, line);

        show(tree, grove, child, first);
        show_branch(tree, grove, child, others);
        child = next;
    }
}

static void
show_grove(struct tree *tree, struct grove *grove)
{
    bool branched = branches(grove);

    for (size_t i = 0; i < grove->count; i++) {
        if (grove->shown[i] || (branched && grove->parents[i] != NONE))
            continue;
        show(tree, grove, i, "");
        if (branched)
            show_branch(tree, grove, i, "");
    }
    /* What claims to build on itself hangs on no root. */
    for (size_t i = 0; i < grove->count; i++)
        if (!grove->shown[i])
            show(tree, grove, i, "");
}

void
tree_make(struct tree *tree, struct json_object *records, bool utf8)
{
    size_t count = vf_json_length(records);

    *tree = (struct tree){NULL, 0};
    for (size_t first = 0, end; first < count; first = end) {
        const char *vm = vf_json_string(vf_json_at(records, first), "vm");

        for (end = first + 1; end < count; end++)
            if (!same(vf_json_string(vf_json_at(records, end), "vm"), vm))
                break;
        VF_AUTO_FREE size_t *parents = vf_alloc((end - first) * sizeof *parents);
        VF_AUTO_FREE bool *shown = vf_alloc((end - first) * sizeof *shown);
        struct grove grove = {records, first, end - first, parents, shown, utf8};

        for (size_t i = 0; i < grove.count; i++)
            parents[i] = find(&grove, vf_json_string(record_at(&grove, i), "parent"));
        show_grove(tree, &grove);
    }
}

void
tree_release(struct tree *tree)
{
    for (size_t i = 0; i < tree->count; i++)
        free(tree->rows[i].branch);
    free(tree->rows);
    *tree = (struct tree){NULL, 0};
}
