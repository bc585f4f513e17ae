/* SPDX-License-Identifier: MIT
 *
 * The tables of the operations, for the public entry points and for the test that plays every
 * sequence of outcomes through them.
 */
#ifndef VF_FLOWS_TABLES_H
#define VF_FLOWS_TABLES_H

#include "engine/engine.h"

extern const struct vf_table vf_snapshot_table, vf_check_table, vf_status_table, vf_delete_table,
    vf_forget_table, vf_settle_table, vf_freeze_table, vf_thaw_table, vf_recover_table,
    vf_discover_table, vf_restore_table, vf_restore_recover_table, vf_verify_table, vf_export_table,
    vf_clone_table;

#endif
