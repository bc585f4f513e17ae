/* SPDX-License-Identifier: MIT
 *
 * Questions to QEMU's block graph, as x-debug-query-block-graph shows it (QEMU 4.0 and later;
 * the only answer that has every edge: query-block shows no children before QEMU 10.1, and hides
 * the filters that jobs insert). Pure; an answer that makes no sense has no nodes and no edges.
 */
#ifndef VF_VM_GRAPH_H
#define VF_VM_GRAPH_H

#include <json-c/json.h>
#include <stdbool.h>

/* The node named `node` is there. */
bool vf_graph_has(struct json_object *graph, const char *node);
/* The name of the node that `node` uses as `child` ("file", "backing", ...); borrowed; NULL if
 * none. */
const char *vf_graph_child(struct json_object *graph, const char *node, const char *child);
/* `node` is used by something else than the monitor: a device, a job, another node. */
bool vf_graph_in_use(struct json_object *graph, const char *node);
/* A drive or a device uses `node` itself, without any filter between. */
bool vf_graph_has_device(struct json_object *graph, const char *node);
/* A block job works on `node`. */
bool vf_graph_has_job(struct json_object *graph, const char *node);

/* The id of a block job that works on `node`, or on anything below or above it; borrowed; ""
 * for a job that QEMU has not named; NULL if none. */
const char *vf_graph_job_near(struct json_object *graph, const char *node);
/* The block job `job` works on `node`, or on anything that stands above it. */
bool vf_graph_job_is_above(struct json_object *graph, const char *job, const char *node);
/* The name of a node that has `node` as its backing file, the one that was told of first; borrowed;
 * NULL if none. */
const char *vf_graph_overlay(struct json_object *graph, const char *node);
/* The device writes to its disk. `backend` is the drive's name or, for a drive without one, its
 * device's id or QOM path, as query-block has them. */
bool vf_graph_backend_writes(struct json_object *graph, const char *backend);
/* Something that is neither a device nor a job nor a node uses `node`: an export, mostly. */
bool vf_graph_has_export(struct json_object *graph, const char *node);

#endif
