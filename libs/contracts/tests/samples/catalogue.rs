//! Every event and every request, so that each is held to its sample. A test compares these lists with what the
//! modules declare.

use contracts::{Event, request::Ask};
use gantry_contracts as contracts;

/// Is shown every type of events.
pub trait Visit {
    fn event<E: Event>(&mut self);
}

/// Is shown every request.
pub trait VisitRequest {
    fn request<A: Ask>(&mut self);
}

macro_rules! list {
    ($name:ident, $visit:ident, $method:ident: $($ty:path),* $(,)?) => {
        /// Shows all of them.
        pub fn $name<V: $visit>(visitor: &mut V) {
            use contracts::*;
            $(visitor.$method::<$ty>();)*
        }
    };
}

list! {
    events, Visit, event:
    conductor::WorkflowCreated,
    conductor::JobsAdded,
    conductor::JobReady,
    conductor::TurnWanted,
    conductor::TurnDone,
    conductor::TurnGiven,
    conductor::PassedOver,
    conductor::JobOnHold,
    conductor::JobRunning,
    conductor::JobEnded,
    conductor::WorkflowStatusChanged,
    conductor::CancelRequested,
    conductor::WorkflowFinished,
    contexts::ContextCreated,
    contexts::ContextDeleted,
    contexts::VariableSet,
    contexts::VariableRemoved,
    contexts::ContextRestricted,
    contexts::RestrictionRemoved,
    contexts::ContextUnrestricted,
    contexts::SshKeyAdded,
    contexts::SshKeyRemoved,
    delivery::DeliveryReceived,
    dispatcher::TaskQueued,
    dispatcher::TaskStarted,
    dispatcher::TaskRevoked,
    dispatcher::TaskFinished,
    dispatcher::JobStarted,
    dispatcher::JobFinished,
    dispatcher::RunnerClassCreated,
    dispatcher::RunnerClassDeleted,
    dispatcher::RunnerTokenCreated,
    dispatcher::RunnerTokenRevoked,
    domain::OrgCreated,
    domain::UserCreated,
    domain::TokenCreated,
    domain::TokenRevoked,
    domain::ProjectCreated,
    domain::ProjectSettingsChanged,
    orbs::OrbNamespaceCreated,
    orbs::OrbNamespaceRenamed,
    orbs::OrbNamespaceDeleted,
    orbs::OrbCreated,
    orbs::OrbPublished,
    orbs::OrbListed,
    output::StepReported,
    permissions::RoleGranted,
    pipelines::PipelineCreated,
    pipelines::PipelineContinued,
    policies::PolicyBundlePushed,
    policies::PolicySettingsChanged,
    retention::PipelineExpired,
    retention::WorkflowExpired,
    stores::ReportsStored,
}

list! {
    requests, VisitRequest, request:
    conductor::CancelWorkflow,
    conductor::CancelJob,
    conductor::ApproveJob,
    conductor::RerunWorkflow,
    conductor::ReleaseTurn,
    conductor::ExplainWait,
    conductor::JobAncestry,
    contexts::SetVariable,
    contexts::RemoveVariable,
    contexts::ListVariables,
    contexts::CreateContext,
    contexts::ListContexts,
    contexts::GetContext,
    contexts::DeleteContext,
    contexts::AddRestriction,
    contexts::ListRestrictions,
    contexts::RemoveRestriction,
    contexts::Unrestrict,
    contexts::AddSshKey,
    contexts::MakeCheckoutKey,
    contexts::ListSshKeys,
    contexts::RemoveSshKey,
    contexts::GetJwks,
    delivery::GetDecision,
    dispatcher::ReportPlacements,
    dispatcher::RevokeJobs,
    dispatcher::ExplainJob,
    dispatcher::CloseEpoch,
    dispatcher::CreateRunnerClass,
    dispatcher::ListRunnerClasses,
    dispatcher::GetRunnerClass,
    dispatcher::DeleteRunnerClass,
    dispatcher::CreateRunnerToken,
    dispatcher::ListRunnerTokens,
    dispatcher::GetRunnerToken,
    dispatcher::DeleteRunnerToken,
    dispatcher::ListRunners,
    dispatcher::CountRunnerTasks,
    domain::GetProjectSettings,
    domain::ChangeProjectSettings,
    domain::VerifyToken,
    domain::CreateToken,
    domain::ListTokens,
    domain::RevokeToken,
    domain::Bootstrap,
    domain::GetProject,
    domain::EnsureProject,
    domain::ListProjects,
    domain::ListOrgs,
    orbs::CreateOrbNamespace,
    orbs::GetOrbNamespace,
    orbs::RenameOrbNamespace,
    orbs::DeleteOrbNamespace,
    orbs::CreateOrb,
    orbs::GetOrb,
    orbs::ListOrbs,
    orbs::GetOrbVersion,
    orbs::PublishOrb,
    orbs::PromoteOrb,
    orbs::SetOrbListed,
    orbs::ValidateOrb,
    output::ReadLog,
    output::GetSteps,
    output::GetStep,
    permissions::CheckPermission,
    pipelines::TriggerPipeline,
    pipelines::GetPipeline,
    pipelines::GetPipelineConfig,
    pipelines::GetPipelineValues,
    pipelines::ContinuePipeline,
    pipelines::CompileConfig,
    policies::GetPolicyBundle,
    policies::PushPolicyBundle,
    policies::GetPolicySettings,
    policies::SetPolicySettings,
    policies::DecidePolicy,
    policies::ListPolicyDecisions,
    retention::SettledPipelines,
    retention::RunRetention,
    stores::ListArtifacts,
    stores::OpenArtifact,
    test_results::ListTests,
}
