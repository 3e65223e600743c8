//! Whether policies decide about an organisation's pipelines.

use super::{KIND, lock};
use crate::State;
use bus::once::{Begun, Failure, Once};
use contracts::{
    NewEvent, Request,
    policies::{GetPolicySettings, PolicySettingsChanged, SetPolicySettings},
};
use ids::OrgId;
use sqlx::PgConnection;

pub(crate) async fn settings(state: &State, _: &Request, ask: GetPolicySettings) -> Result<bool, Failure> {
    let mut conn = state.store.pool().acquire().await?;
    Ok(enabled(&mut conn, ask.org_id).await?)
}

pub(crate) async fn set_settings(
    state: &State,
    request: &Request,
    ask: SetPolicySettings,
) -> Result<bool, Failure> {
    let mut once = match Once::begin(&state.store, request, &[lock(ask.org_id)]).await? {
        Begun::New(once) => once,
        Begun::Answered(answer) => return Ok(answer),
    };
    if enabled(once.tx.conn(), ask.org_id).await? != ask.enabled {
        sqlx::query(
            "INSERT INTO pipelines.policy_settings (org_id, enabled) VALUES ($1, $2)
             ON CONFLICT (org_id) DO UPDATE SET enabled = excluded.enabled",
        )
        .bind(ask.org_id.uuid())
        .bind(ask.enabled)
        .execute(once.tx.conn())
        .await?;
        let body = PolicySettingsChanged { org_id: ask.org_id, enabled: ask.enabled };
        let mut event = NewEvent::new(KIND, ask.org_id.uuid(), request.actor.clone(), &body);
        event.org_id = Some(ask.org_id);
        once.tx.append(&[event.caused_by(request.id)]).await?;
    }
    once.commit(ask.enabled).await
}

pub(super) async fn enabled(conn: &mut PgConnection, org: OrgId) -> sqlx::Result<bool> {
    let enabled: Option<bool> =
        sqlx::query_scalar("SELECT enabled FROM pipelines.policy_settings WHERE org_id = $1")
            .bind(org.uuid())
            .fetch_optional(conn)
            .await?;
    Ok(enabled.unwrap_or(false))
}
