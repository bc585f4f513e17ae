/* SPDX-License-Identifier: MIT
 *
 * {"nodes": [{"id", "type", "name"}], "edges": [{"parent", "child", "name", "perm"}]}: ids are
 * unique, names only among those of type "block-driver". Graphs are small (two nodes a disk and
 * two for each backing file), so that every question walks the lists.
 */
#include "vm/graph.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "util/json.h"
#include "util/mem.h"

static const char driver_type[] = "block-driver", job_type[] = "block-job",
                  backend_type[] = "block-backend";

static bool
is(struct json_object *object, const char *key, const char *wanted)
{
    const char *text = vf_json_string(object, key);

    return text && strcmp(text, wanted) == 0;
}

/* NULL at the end. */
static struct json_object *
edge_at(struct json_object *graph, size_t index)
{
    return vf_json_at(vf_json_array(graph, "edges"), index);
}

static size_t
edge_count(struct json_object *graph)
{
    return vf_json_length(vf_json_array(graph, "edges"));
}

/* Ends that are no numbers lead nowhere. */
static bool
ends_of(struct json_object *edge, int64_t *parent_r, int64_t *child_r)
{
    return vf_json_int(edge, "parent", parent_r) && vf_json_int(edge, "child", child_r);
}

static struct json_object *
vertex(struct json_object *graph, int64_t wanted)
{
    struct json_object *nodes = vf_json_array(graph, "nodes");
    int64_t id;

    for (size_t i = 0; i < vf_json_length(nodes); i++)
        if (vf_json_int(vf_json_at(nodes, i), "id", &id) && id == wanted)
            return vf_json_at(nodes, i);
    return NULL;
}

static bool
find(struct json_object *graph, const char *type, const char *name, int64_t *id_r)
{
    struct json_object *nodes = vf_json_array(graph, "nodes");

    for (size_t i = 0; i < vf_json_length(nodes); i++) {
        struct json_object *each = vf_json_at(nodes, i);

        if (is(each, "type", type) && is(each, "name", name))
            return vf_json_int(each, "id", id_r);
    }
    return false;
}

bool
vf_graph_has(struct json_object *graph, const char *node)
{
    int64_t id;

    return find(graph, driver_type, node, &id);
}

const char *
vf_graph_child(struct json_object *graph, const char *node, const char *child)
{
    int64_t id, parent_id, child_id;

    if (!find(graph, driver_type, node, &id))
        return NULL;
    for (size_t i = 0; i < edge_count(graph); i++) {
        struct json_object *edge = edge_at(graph, i);

        if (ends_of(edge, &parent_id, &child_id) && parent_id == id && is(edge, "name", child))
            return vf_json_string(vertex(graph, child_id), "name");
    }
    return NULL;
}

bool
vf_graph_in_use(struct json_object *graph, const char *node)
{
    int64_t id, parent_id, child_id;

    if (!find(graph, driver_type, node, &id))
        return false;
    for (size_t i = 0; i < edge_count(graph); i++)
        if (ends_of(edge_at(graph, i), &parent_id, &child_id) && child_id == id)
            return true;
    return false;
}

/* The name of the job that has an edge to `id`, or of any. */
static const char *
job_on(struct json_object *graph, int64_t id, const char *wanted)
{
    int64_t parent_id, child_id;

    for (size_t i = 0; i < edge_count(graph); i++) {
        if (!ends_of(edge_at(graph, i), &parent_id, &child_id) || child_id != id)
            continue;
        struct json_object *parent = vertex(graph, parent_id);

        if (is(parent, "type", job_type) && (!wanted || is(parent, "name", wanted))) {
            const char *name = vf_json_string(parent, "name");

            return name ? name : "";
        }
    }
    return NULL;
}

bool
vf_graph_has_job(struct json_object *graph, const char *node)
{
    int64_t id;

    return find(graph, driver_type, node, &id) && job_on(graph, id, NULL);
}

struct id_list {
    int64_t *ids;
    size_t count;
};

static void
add_once(struct id_list *list, int64_t id)
{
    for (size_t i = 0; i < list->count; i++)
        if (list->ids[i] == id)
            return;
    VF_GROW(list->ids, list->count);
    list->ids[list->count++] = id;
}

enum direction { BELOW, ABOVE };

/* Looks at `start` and at all nodes that can be reached from it in one direction. */
static const char *
job_towards(struct json_object *graph, int64_t start, enum direction direction, const char *wanted)
{
    struct id_list seen = {NULL, 0};
    const char *job = NULL;
    int64_t parent_id, child_id;

    add_once(&seen, start);
    for (size_t at = 0; at < seen.count && !job; at++) {
        int64_t id = seen.ids[at];

        job = job_on(graph, id, wanted);
        for (size_t i = 0; i < edge_count(graph); i++) {
            if (!ends_of(edge_at(graph, i), &parent_id, &child_id))
                continue;
            if (direction == BELOW && parent_id == id)
                add_once(&seen, child_id);
            if (direction == ABOVE && child_id == id &&
                is(vertex(graph, parent_id), "type", driver_type))
                add_once(&seen, parent_id);
        }
    }
    free(seen.ids);
    return job;
}

const char *
vf_graph_job_near(struct json_object *graph, const char *node)
{
    int64_t id;

    if (!find(graph, driver_type, node, &id))
        return NULL;
    const char *job = job_towards(graph, id, BELOW, NULL);

    return job ? job : job_towards(graph, id, ABOVE, NULL);
}

bool
vf_graph_job_is_above(struct json_object *graph, const char *job, const char *node)
{
    int64_t id;

    return find(graph, driver_type, node, &id) && job_towards(graph, id, ABOVE, job);
}

const char *
vf_graph_overlay(struct json_object *graph, const char *node)
{
    int64_t id, parent_id, child_id;

    if (!find(graph, driver_type, node, &id))
        return NULL;
    for (size_t i = 0; i < edge_count(graph); i++) {
        struct json_object *edge = edge_at(graph, i), *parent;

        if (!ends_of(edge, &parent_id, &child_id) || child_id != id || !is(edge, "name", "backing"))
            continue;
        parent = vertex(graph, parent_id);
        if (is(parent, "type", driver_type))
            return vf_json_string(parent, "name");
    }
    return NULL;
}

bool
vf_graph_backend_writes(struct json_object *graph, const char *backend)
{
    int64_t id, parent_id, child_id;

    if (!find(graph, backend_type, backend, &id))
        return false;
    for (size_t i = 0; i < edge_count(graph); i++) {
        struct json_object *edge = edge_at(graph, i);
        struct json_object *permissions = vf_json_array(edge, "perm");

        if (!ends_of(edge, &parent_id, &child_id) || parent_id != id)
            continue;
        for (size_t j = 0; j < vf_json_length(permissions); j++) {
            const char *permission = vf_json_text(vf_json_at(permissions, j));

            if (permission && strcmp(permission, "write") == 0)
                return true;
        }
    }
    return false;
}

/* A block backend of which that is true uses `node`: named after its drive or its device, or
 * nameless. */
static bool
has_backend(struct json_object *graph, const char *node, bool named)
{
    int64_t id, parent_id, child_id;

    if (!find(graph, driver_type, node, &id))
        return false;
    for (size_t i = 0; i < edge_count(graph); i++) {
        if (!ends_of(edge_at(graph, i), &parent_id, &child_id) || child_id != id)
            continue;
        struct json_object *parent = vertex(graph, parent_id);

        if (is(parent, "type", backend_type) && !is(parent, "name", "") == named)
            return true;
    }
    return false;
}

bool
vf_graph_has_device(struct json_object *graph, const char *node)
{
    return has_backend(graph, node, true);
}

bool
vf_graph_has_export(struct json_object *graph, const char *node)
{
    return has_backend(graph, node, false);
}
