/* SPDX-License-Identifier: MIT
 *
 * The steps that tables are made of, and the parts that several steps share. Each step function
 * is documented at its definition; each ends its step exactly once.
 */
#ifndef VF_FLOWS_STEPS_H
#define VF_FLOWS_STEPS_H

#include "flows/flow.h"

/* connect.c: QEMU's monitor. */
void vf_step_connect(struct vf_flow *flow);
/* Calls `fn` when connected to the QEMU that this operation began with; connects again if needed.
 * Else the step ends: for good if that QEMU is gone. */
void vf_with_qemu(struct vf_flow *flow, void (*fn)(struct vf_flow *flow));

/* The version that QEMU's greeting tells. */
void vf_note_version(struct vf_flow *flow, struct json_object *greeting);
/* Like vf_step_connect(), for operations that work on a VM that is not running as well. */
void vf_step_reach(struct vf_flow *flow);

/* offline.c: a VM that is not running. */
/* False: the VM is not known to be stopped. Else the step goes on, or has ended. `words`: why it
 * could not be reached. */
bool vf_go_offline(struct vf_flow *flow, const char *words);
/* For who only tells of it: nobody listens on the VM's socket, and no QEMU has one of its disks
 * open, which have to be known. False with an error noted: one has. */
bool vf_seems_stopped(struct vf_flow *flow);
void vf_look_offline(struct vf_flow *flow);
/* Starts a storage daemon, one of the flow's; false if that failed and the step ended. */
bool vf_daemon_launch(struct vf_flow *flow, struct vf_daemon *daemon);
/* flow->qmp is connected to it, and flow->qemu is it; then `fn` is called with the greeting. If it
 * cannot be, the step ends. */
void vf_daemon_attach(struct vf_flow *flow, struct vf_daemon *daemon, vf_flow_fn *fn);
/* The daemon has held the locks of the stopped VM's images all the time; else the step ends. */
bool vf_daemon_holds(struct vf_flow *flow);
/* Nothing that can be seen of an image and of all that it builds on keeps QEMU from opening it, or
 * hangs it; else false with the error noted. */
bool vf_can_be_opened(struct vf_flow *flow, const char *disk, const char *file, const char *format);
/* blockdev-add's options for an image with all that it builds on. Owned by the caller. */
struct json_object *vf_image_options(const char *file, const char *format, const char *node);
/* Gives the file the mode of `model`, and its owner and group, as far as this process may: `same_r`
 * tells whether it has them. False with errno. */
bool vf_like(int fd, const char *model, bool *same_r);
/* Lets go of the overlays that we have made for a VM that is not running. */
void vf_overlays_close(struct vf_flow *flow);

/* look.c: what QEMU is, and where its agent is. */
void vf_step_look(struct vf_flow *flow);
void vf_facts_release(struct vf_flow *flow);
/* All that vf_look_again() asks for anew, and which is most of what a VM that waits for others
 * takes up. */
void vf_facts_forget(struct vf_flow *flow);
/* What QEMU tells of a node; borrowed; NULL if there is no such node. */
struct json_object *vf_node_about(const struct vf_flow *flow, const char *node);
/* The file name of a node as QEMU knows it; borrowed; NULL if there is no such node. */
const char *vf_node_file(const struct vf_flow *flow, const char *node);
/* Asks for the disks, the nodes and the graph anew; `fn` is not called if that fails (the step then
 * ended). */
void vf_look_again(struct vf_flow *flow, void (*fn)(struct vf_flow *flow));
/* The same for the devices alone, of a VM that runs: the nodes, which are most of what QEMU tells,
 * stay as they were seen last. */
void vf_look_at_devices(struct vf_flow *flow, void (*fn)(struct vf_flow *flow));
/* The same for the graph alone. */
void vf_look_at_graph(struct vf_flow *flow, void (*fn)(struct vf_flow *flow));

/* What QEMU has open, read once for all that is done in one turn of the loop; until vf_end(). */
const struct vf_view *vf_view_of_qemu(struct vf_flow *flow);

/* plan.c: which disks, and under which names. */
void vf_step_plan(struct vf_flow *flow);
/* Makes flow->plan from flow->facts; false with the refusal. */
bool vf_plan_facts(struct vf_flow *flow, struct vmfrost_error *error);
/* flow->facts and the VM's settings, for a plan without anybody's requests. */
struct vf_plan_input vf_plan_input_of(const struct vf_flow *flow);
/* Its run state and migration let the VM's disks be changed. */
bool vf_state_allows(struct vf_flow *flow, struct vmfrost_error *error);
/* Names in the image's folder can change, as far as can be seen; `by_us`: it is us who change them.
 * Else false with the error. */
bool vf_folder_allows(const char *image, bool by_us, struct vmfrost_error *error);
/* Where a disk's image lies; false with the reason why it cannot be cut. */
bool vf_disk_place(struct vf_flow *flow, const struct vf_disk *disk, struct vf_place *place,
                   struct vmfrost_error *error);

/* classes.c: storage classes, and whether their disks have room. */
/* Which disks of flow->facts their classes leave out, for vf_plan_input; owned by the caller; NULL
 * with the reason if the classes cannot be read. */
struct json_object *vf_classes_left_out(struct vf_flow *flow, struct vmfrost_error *error);
/* The class of a disk that lies at `place`, which may be known in part; NULL: none. */
const struct vf_class *vf_disk_class(const struct vf_flow *flow, const struct vf_disk *disk,
                                     const struct vf_place *place);
/* What the class of the cut says of its overlay. */
void vf_class_overlay_layout(const struct vf_flow *flow, const struct vf_cut *cut,
                             int64_t *cluster_size_r, bool *extended_l2_r);
bool vf_class_preallocates(const struct vf_flow *flow, const struct vf_cut *cut);
/* The same as arguments of blockdev-create. */
void vf_class_overlay_options(const struct vf_flow *flow, const struct vf_cut *cut,
                              struct json_object *options);
/* There is as much room for the overlays as the classes want; false with the refusal. */
bool vf_room_suffices(const struct vf_flow *flow, struct vmfrost_error *error);

/* disks.c: what is remembered of the disks, for when the VM is not running. */
/* What the graph shows, if a snapshot could be taken. A failure is a warning. `made` is the plan of
 * all that, if there is one that nobody's requests have changed; or NULL. */
void vf_disks_note(struct vf_flow *flow, const struct vf_plan *made);
/* The disk's current image has another name by now. */
void vf_disks_moved(struct vf_flow *flow, const char *disk, const char *file, const char *format);
/* The same of all cuts whose overlay is a new file. */
void vf_disks_cut(struct vf_flow *flow);

/* plug.c: disks that come and go while a snapshot is taken. */
/* QEMU's event: a device is gone. */
void vf_plug_deleted(struct vf_flow *flow, const char *path);
/* False with the refusal if a disk that is to be cut was unplugged, as far as events tell. */
bool vf_plug_unchanged(struct vf_flow *flow);
/* Asks QEMU: `fn` is called if each disk that is to be cut is still in its device; else the step
 * ends with the refusal. */
void vf_plug_look(struct vf_flow *flow, void (*fn)(struct vf_flow *flow));
/* Warns of disks that were unplugged after the cut, and of those that are new. */
void vf_plug_compare(struct vf_flow *flow);

/* agent.c: is it there, and may it freeze? */
void vf_step_agent(struct vf_flow *flow);
/* Opens the agent's socket if it is not open; OK or UNKNOWN to `fn`. */
void vf_agent_open(struct vf_flow *flow, vf_flow_fn *fn);

/* peer.c: who listens on a socket that has just been connected to. False with the reason. */
bool vf_peer_is_trusted(struct vf_flow *flow, int fd, const char *path,
                        struct vmfrost_error *error);

/* overlays.c: the new images. */
void vf_step_overlays(struct vf_flow *flow);
/* The node of an overlay's file, there only while the image is created; owned by the caller. */
char *vf_overlay_file_node(const struct vf_cut *cut);
/* How an overlay is opened by hand: arguments of blockdev-add; owned by the caller. */
struct json_object *vf_overlay_options(const struct vf_flow *flow, const struct vf_cut *cut);

/* rehearse.c: the transaction, tried before the freeze. */
void vf_step_rehearse(struct vf_flow *flow);
/* The transaction of the cut, as arguments; owned by the caller. */
struct json_object *vf_cut_transaction(const struct vf_flow *flow);
/* vf_expect() for its reply: names the disk that QEMU's words are about, if they tell. */
bool vf_expect_cut(struct vf_flow *flow, const struct vf_reply *reply, const char *what);

/* flush.c: less is dirty when the guest is frozen. */
/* The settings and the agent allow the guest's part. */
bool vf_flush_wanted(const struct vf_flow *flow);
void vf_step_flush(struct vf_flow *flow);
void vf_step_flush_host(struct vf_flow *flow);
/* What the host's cache holds of these files is written out; then `fn` is called, which may be at
 * once, and `synced` is false, if that cannot be done. Those that it is not possible with are left
 * out. */
void vf_sync_files(struct vf_flow *flow, const char *const *paths, size_t count,
                   void (*fn)(struct vf_flow *flow, bool synced));

/* mounts.c: which of the guest's file systems are frozen. */
/* The guest has to be asked for them; else all are. */
bool vf_mounts_wanted(struct vf_flow *flow);
void vf_step_mounts(struct vf_flow *flow);
/* Adds what is frozen, and why. */
void vf_freezing_json(const struct vf_flow *flow, struct json_object *object);
void vf_freezing_release(struct vf_flow *flow);

/* files.c: taking away what was prepared, or merged. */
void vf_step_undo_files(struct vf_flow *flow);
/* The same of files and links alone, where no QEMU has nodes of them any more; false: not all. */
bool vf_remove_names(struct vf_flow *flow);
/* Makes the folders of all disks' overlays durable, each of them once. A disk where that failed,
 * and why in errno; NULL: all went well. */
const struct vf_cut *vf_sync_folders(const struct vf_flow *flow);
/* Some QEMU of this host has the file open. */
bool vf_is_open(const struct vf_flow *flow, struct vf_inode inode);
/* The sealed name stays, as a second name of the image that `other` leads to, as long as the QEMU
 * lives that knows it. */
bool vf_keep_sealed(struct vf_flow *flow, const struct vf_cut *cut, const char *other);

/* window.c: freeze, cut, flip, thaw. */
void vf_step_guard(struct vf_flow *flow);
void vf_step_freeze(struct vf_flow *flow);
void vf_step_cut(struct vf_flow *flow);
void vf_step_flip(struct vf_flow *flow);
void vf_step_thaw(struct vf_flow *flow);
void vf_step_thaw_again(struct vf_flow *flow);
/* Renames every second link that is still there over its disk's name. */
bool vf_flip_all(struct vf_flow *flow);

/* Forks the guard of this flow's names; `agent_fd` -1: no freeze. */
bool vf_guard_fork(struct vf_flow *flow, int agent_fd, struct vmfrost_error *error);

/* group.c: several VMs at one instant. */
void vf_step_group_prepared(struct vf_flow *flow);
void vf_step_group_ready(struct vf_flow *flow);
void vf_step_group_frozen(struct vf_flow *flow);
void vf_step_group_cut(struct vf_flow *flow);
void vf_step_group_commit(struct vf_flow *flow);

/* restore.c: the disks go back to a snapshot. */
void vf_restore_prepare(struct vf_flow *flow);
void vf_restore_describe(struct vf_flow *flow);
/* Every name leads to the restored disk, durably; false: not all do. */
bool vf_restore_turn(struct vf_flow *flow);
void vf_step_restored(struct vf_flow *flow);

/* pivot.c: the same for a VM that runs. */
void vf_step_restore_guard(struct vf_flow *flow);
void vf_step_halt(struct vf_flow *flow);
void vf_step_mirror(struct vf_flow *flow);
void vf_step_undo_mirror(struct vf_flow *flow);
void vf_step_pivot(struct vf_flow *flow);
void vf_step_reset(struct vf_flow *flow);
void vf_step_go_on(struct vf_flow *flow);
void vf_step_drop_old_nodes(struct vf_flow *flow);
/* The disk runs on its new overlay, by the graph that was asked for last. */
bool vf_restore_runs_on(const struct vf_flow *flow, const struct vf_cut *cut);
/* Names of all nodes that the disks of the flow stand on now, each before what it stands on. Owned
 * by the caller. */
struct json_object *vf_nodes_below(const struct vf_flow *flow);

/* verify.c: is it what it should be? */
void vf_step_verify(struct vf_flow *flow);
void vf_step_resolve(struct vf_flow *flow);
/* How many of the flow's cuts QEMU has made, by the graph that was asked last. */
size_t vf_cuts_made(const struct vf_flow *flow);

/* merge.c: commit the overlays back into their bases. */
/* QEMU may open this node's image for writing: the name by which it knows it leads to `inode`. */
bool vf_node_leads_to(const struct vf_flow *flow, const char *node, struct vf_inode inode);
/* The disk runs on its base, which has all of the overlay, by the graph that was asked last. */
bool vf_is_merged(struct vf_flow *flow, const struct vf_cut *cut);
void vf_step_merge(struct vf_flow *flow);
/* Cancels the merge that is under way, if any. */
void vf_step_stop_merge(struct vf_flow *flow);
/* Make the disk's visible name lead to its base or its overlay. */
bool vf_turn_to_base(struct vf_flow *flow, const struct vf_cut *cut);
bool vf_turn_to_overlay(struct vf_flow *flow, const struct vf_cut *cut);
/* The guest wrote to the base again while its overlay holds what it wrote before: notes that nobody
 * can join these. */
void vf_note_both_used(struct vf_flow *flow, const struct vf_cut *cut);

/* obstacle.c: what somebody else has at the VM's disks. */
/* By this reply to query-status, the disks are another QEMU's: the step has ended for good. */
bool vf_is_moved(struct vf_flow *flow, const struct vf_reply *status);
/* By the graph that was asked last, somebody else's overlay or job is on the disk: it cannot be
 * merged, and the step has ended for good. (QEMU would refuse it, but drain the job first, which
 * may take it long.) */
bool vf_is_obstructed(struct vf_flow *flow, const struct vf_cut *cut);
/* Ends a step that is tried again, as REFUSED: for good, if such a thing is in the way. */
void vf_end_refused(struct vf_flow *flow);

/* job.c: QEMU's jobs. */
/* Starts a job by `command` (its arguments get the job's id), as one request of a batch, `about` as
 * in vf_batch_ask(). */
void vf_jobs_start(struct vf_flow *flow, const char *about, const char *command,
                   struct json_object *arguments);
/* Ends that batch, instead of vf_batch_end(), waits until all of its jobs have concluded, and
 * dismisses them. REFUSED with the first error that one of them had; flow->batch.failed is what
 * that is about. */
void vf_jobs_finish(struct vf_flow *flow, vf_flow_fn *fn);
/* Waits until the job `id` is in one of the states (VF_JOB_*), which may have come already. */
enum {
    VF_JOB_READY = 1 << 0,
    VF_JOB_PENDING = 1 << 1,
    VF_JOB_CONCLUDED = 1 << 2,
    VF_JOB_GONE = 1 << 3, /* "null", or not there at all */
};

/* What the ids of jobs on disks begin with, so that a later vmfrost knows them. */
#define VF_JOB_OURS "vfm"
void vf_job_watch(struct vf_flow *flow, const char *id);
/* Adds to the arguments of a command that starts a job on a disk what all of them have: it stays
 * until it is dismissed, is watched from now on, and is as fast as the VM's settings let it be. */
void vf_job_ask(struct vf_flow *flow, const char *id, const char *command,
                struct json_object *arguments, vf_flow_fn *fn);
/* Asks the job that is READY for its end. From here on it is limited by nothing: a guest that
 * writes faster than the limit would never let it end. */
void vf_job_complete(struct vf_flow *flow, vf_flow_fn *fn);
/* What the job does is this part of the running step, in percents: vf_job_wait() tells the
 * progress. It counts for all jobs of the step that come after; without it nothing is told. */
void vf_job_share(struct vf_flow *flow, double from, double to);
/* Nobody waits any more. */
void vf_job_forget(struct vf_flow *flow);
void vf_job_on_timer(struct ev_loop *loop, ev_timer *watcher, int revents);
void vf_job_wait(struct vf_flow *flow, unsigned states, vf_flow_fn *fn);
/* How is it now, in whatever state? The reply's value is the job as query-jobs shows it, NULL if it
 * is gone. */
void vf_job_look(struct vf_flow *flow, vf_flow_fn *fn);
/* Asks for all jobs, and watches those whose ids begin so from then on. */
void vf_jobs_ask(struct vf_flow *flow, const char *prefix, vf_flow_fn *fn);
/* Calls `fn` when one of them has come to a state that somebody may wait for since they were asked
 * for; at once, if that was while the answer was on its way: it may be older. */
void vf_jobs_await(struct vf_flow *flow, vf_flow_fn *fn);
/* The bit of a state's name; 0 for states that nobody waits for. */
unsigned vf_job_state_bit(const char *name);
void vf_job_event(struct vf_flow *flow, const char *state);
void vf_job_lost(struct vf_flow *flow, const char *why);

/* record.c: the record and the journal. */
void vf_step_accept(struct vf_flow *flow);
void vf_step_record(struct vf_flow *flow);
void vf_step_undo_record(struct vf_flow *flow);
void vf_step_close_up(struct vf_flow *flow);
/* Adds a line to the journal: {"state": state, ...more}. `more` (may be NULL) is owned. */
bool vf_journal_state(struct vf_flow *flow, const char *state, struct json_object *more);
/* What is known of the window, for records and the journal; owned by the caller. */
struct json_object *vf_evidence_json(const struct vf_flow *flow);
/* An array of the flow's cuts. */
struct json_object *vf_cuts_json(const struct vf_flow *flow);
bool vf_cuts_parse(struct vf_flow *flow, struct json_object *array);
/* Puts the error together from all that is known; once. */
void vf_conclude(struct vf_flow *flow);
/* There is room for what an operation has to write down before it may begin; else false with the
 * error noted. Not for deletions, which make room. */
bool vf_state_has_room(struct vf_flow *flow);
/* A new record in flow->record, with what is known from the beginning. */
void vf_record_make(struct vf_flow *flow, const char *name);
/* The record of `snapshot` knows its sealed image `path` again, which was written to on purpose. */
bool vf_record_refresh(struct vf_flow *flow, const char *snapshot, const char *path);
bool vf_record_write(struct vf_flow *flow, const char *phase, bool ready);
/* The VM was not running. A recovery knows it from the record. */
bool vf_record_is_offline(const struct vf_flow *flow);
/* The error of a record whose cuts cannot be understood. Always false. */
bool vf_record_unclear(const struct vf_vm *vm, const char *snapshot, struct vmfrost_error *error);
bool vf_keep_links(struct vf_flow *flow);
/* The operation goes on in spite of its error, which becomes a warning. */
void vf_absolve(struct vf_flow *flow);
/* Begins the journal with the flow's first line; ends it, if there is one, unless something else is
 * owed. */
bool vf_journal_open(struct vf_flow *flow);
bool vf_journal_close_up(struct vf_flow *flow);
/* The same where all is done: that it stays is a warning, for the next command finds that out. */
void vf_journal_finish(struct vf_flow *flow);

/* links.c: names that a running QEMU still needs. */
/* Remembers that `path`, a link of `inode`, must stay as long as the QEMU of this flow lives; `top`
 * is the visible name of the same disk. */
bool vf_links_add(struct vf_flow *flow, const char *path, const char *top);
/* The same for the hidden names of all overlays of this flow. */
bool vf_links_add_overlays(struct vf_flow *flow);
/* It is remembered for the QEMU of this flow. */
bool vf_links_has(const struct vf_flow *flow, const char *path);
/* The visible name of the disk that QEMU knows by `path`; owned by the caller; NULL if not ours. */
char *vf_links_top(const struct vf_flow *flow, const char *path);
/* It is remembered for a QEMU that runs. */
bool vf_links_needed(const struct vf_flow *flow, const char *path);
/* `path` stays, as the name of a snapshot again. */
bool vf_links_forget(struct vf_flow *flow, const char *path);
/* `top` is the visible name of this image now. */
bool vf_links_move(struct vf_flow *flow, struct vf_inode inode, const char *top);
/* Removes the links of images that nobody needs any more. */
bool vf_links_drop(struct vf_flow *flow, const struct vf_inode *inodes, size_t count);
/* Removes the links of images that the QEMU of this flow has closed since: none of its nodes is
 * left that could open them again. */
bool vf_links_trim(struct vf_flow *flow);
/* The list of them can be used; else false with the error. */
bool vf_links_sound(const struct vf_flow *flow, struct vmfrost_error *error);
/* A record that is not being deleted has it as the current or as a sealed image; or whether one has
 * cannot be known. */
bool vf_is_an_image(const struct vf_flow *flow, const char *path);
/* Removes the links whose QEMU is gone; false if the list of them cannot be used. */
bool vf_links_sweep(struct vf_flow *flow);

/* delete.c */
/* Loads the record; one without content is only removed. */
void vf_delete_prepare(struct vf_flow *flow);
/* Recovery of one whose journal is in flow->journal_lines: it is finished or, before another
 * operation, only settled. */
void vf_delete_resume(struct vf_flow *flow);
/* A deletion that was settled, but never finished, is taken up; false: there is none. */
bool vf_delete_unfinished(struct vf_flow *flow);

/* status.c */
void vf_check_prepare(struct vf_flow *flow);

/* recover.c */
void vf_recover_prepare(struct vf_flow *flow);
struct vf_flow *vf_recovery_before(struct vf_flow *parent, vmfrost_done_fn *done);

#endif
