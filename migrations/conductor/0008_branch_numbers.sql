-- The last job number of each branch, for `CIRCLE_PREVIOUS_BUILD_NUM` (execution §11.3).
CREATE TABLE branch_numbers (
    project_id uuid   NOT NULL,
    branch     text   NOT NULL,
    last       bigint NOT NULL,
    PRIMARY KEY (project_id, branch)
);
