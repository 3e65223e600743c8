//! Who reads whom and how far it has come, and what waits: for the question "where does it hang?".

use crate::serve::ROLES;
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, PgPool, Row};

/// Groups with their cursors, messages parked and given up, and the leaders, per service.
///
/// # Errors
/// The database is away.
pub async fn topology(pool: &PgPool) -> anyhow::Result<Value> {
    let mut services = Vec::with_capacity(ROLES.len());
    for service in ROLES {
        let schema = eventstore::schema_of(service);
        let sql = format!(
            "SELECT jsonb_build_object(
               'events', (SELECT reltuples::bigint FROM pg_class WHERE oid = '{schema}.events'::regclass),
               'groups', (SELECT coalesce(jsonb_agg(jsonb_build_object('group', group_name, 'source', source, 'lane', lane,
                            'lanes', lanes, 'xid', xid::text, 'seq', seq, 'updated', updated) ORDER BY group_name, source, lane), '[]')
                          FROM {schema}.cursors),
               'parked', (SELECT count(*) FROM {schema}.parked),
               'dead_letters', (SELECT count(*) FROM {schema}.dead_letters),
               'leaders', (SELECT coalesce(jsonb_agg(jsonb_build_object('role', role, 'holder', holder, 'epoch', epoch,
                             'deadline', deadline)), '[]') FROM {schema}.leaders))"
        );
        let mut one: Value = sqlx::query_scalar(AssertSqlSafe(sql)).fetch_one(pool).await?;
        one["service"] = service.into();
        services.push(one);
    }
    Ok(json!({ "services": services }))
}

/// Tasks that hold a slot, with their leases.
///
/// # Errors
/// The database is away.
pub async fn leases(pool: &PgPool) -> anyhow::Result<Value> {
    let rows = sqlx::query(
        "SELECT jsonb_build_object('task_id', task_id, 'job_id', job_id, 'state', state, 'epoch', epoch,
            'agent_version', agent_version, 'granted_at', granted_at, 'renewed_at', renewed_at, 'deadline', deadline)
         FROM dispatcher.tasks WHERE state IN ('queued', 'leased') ORDER BY position LIMIT 1000",
    )
    .fetch_all(pool)
    .await?;
    let leases = rows.iter().map(|row| row.try_get(0)).collect::<Result<Vec<Value>, _>>()?;
    Ok(json!({ "leases": leases }))
}
