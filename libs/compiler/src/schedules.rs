//! `triggers` of a workflow: schedules in the file (config-language §13.1).

use crate::context::Ctx;
use crate::diagnostics::code;
use crate::interpolate::Env;
use crate::yaml::Node;
use croner::parser::{CronParser, Seconds, Year};
use model::plan::Schedule;

impl Ctx<'_> {
    /// Keeps the schedules of a workflow that hold for the pipeline's branch.
    pub fn triggers(&mut self, workflow: &str, node: &Node) {
        let env = Env { pipeline_parameters: true, ..Env::default() };
        let node = self.interpolate(node, env);
        let Some(items) = node.as_seq() else {
            return self.wrong_type(&node, "`triggers`", "a list of schedules");
        };
        for item in items.iter() {
            let schedule = item.as_map().and_then(|map| {
                self.only_keys(map, &["schedule"], "an entry of `triggers`");
                map.get("schedule").and_then(|e| e.value.as_map())
            });
            let Some(schedule) = schedule else {
                self.wrong_type(item, "an entry of `triggers`", "a map with `schedule`");
                continue;
            };
            self.only_keys(schedule, &["cron", "filters"], "`schedule`");
            let cron = schedule.get("cron").and_then(|e| Some((e.value.span, e.value.as_str()?.clone())));
            let Some((at, cron)) = cron else {
                let message = "required key [cron] not found in `schedule`";
                self.sink.error(code::MISSING_KEY, item.span, message);
                continue;
            };
            let cron = cron.split_whitespace().collect::<Vec<_>>().join(" ");
            let parser = CronParser::builder().seconds(Seconds::Disallowed).year(Year::Disallowed).build();
            if let Err(problem) = parser.parse(&cron) {
                let message = format!("\"{cron}\" is not a schedule: {problem}");
                let hint = "five fields: minute, hour, day of the month, month, day of the week, as in `30 4 * * 1-5`";
                self.sink.error_hint(code::BAD_SCHEDULE, at, message, hint);
                continue;
            }
            let filters = schedule.get("filters").filter(|e| !e.value.is_null());
            let Some((key, filters)) = filters.and_then(|e| Some((e.key, e.value.as_map()?))) else {
                let message = "required key [filters] with `branches` not found in `schedule`";
                let hint = "say for which branches it holds: `filters: {branches: {only: main}}`";
                self.sink.error_hint(code::MISSING_KEY, item.span, message, hint);
                continue;
            };
            self.only_keys(filters, &["branches", "tags"], "`filters` of a schedule");
            if let Some(tags) = filters.get("tags") {
                let message = "`tags` of a schedule have no effect: it runs for branches";
                self.sink.warning(code::IGNORED, tags.key, message);
            }
            if !filters.contains_key("branches") {
                let message = "required key [branches] not found in `filters` of a schedule";
                let hint = "say for which branches it holds: `branches: {only: main}`";
                self.sink.error_hint(code::MISSING_KEY, key, message, hint);
                continue;
            }
            let branch = self.refs.branch.clone();
            if self.ref_filter(filters, "branches", branch.as_deref()).unwrap_or(true) && branch.is_some() {
                self.schedules.push(Schedule { workflow: workflow.to_owned(), cron });
            }
        }
    }
}
