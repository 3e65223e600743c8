//! Configurations of a chosen size, the same on every machine.

use std::fmt::Write;

/// A configuration of about 10,000 lines: 320 jobs of 15 steps, one of them in a matrix of 500, an orb of 20
/// commands, no comments.
#[allow(dead_code, reason = "not every test that shares this module needs it")]
pub fn large() -> String {
    let mut out = String::from("version: 2.1\n\norbs:\n  kit:\n    commands:\n");
    for n in 0..20 {
        let _ = write!(
            out,
            "      do-{n}:\n        parameters:\n          target:\n            type: string\n            default: all\n          loud:\n            type: boolean\n            default: false\n        steps:\n          - run:\n              name: do {n} << parameters.target >>\n              command: make -j4 task-{n} TARGET=<< parameters.target >>\n              environment:\n                LOUD: << parameters.loud >>\n"
        );
    }
    out.push_str("\nexecutors:\n  box:\n    parameters:\n      tag:\n        type: string\n        default: stable\n    docker:\n      - image: cimg/base:<< parameters.tag >>\n    environment:\n      LEVEL: info\n    resource_class: large\n\njobs:\n");
    for n in 0..320 {
        let _ = write!(
            out,
            "  job-{n}:\n    parameters:\n      os:\n        type: string\n        default: linux\n      version:\n        type: string\n        default: \"1\"\n      shard:\n        type: integer\n        default: 1\n    executor:\n      name: box\n      tag: edge\n    environment:\n      OS: << parameters.os >>\n    steps:\n      - checkout\n"
        );
        for step in 0..14 {
            match step % 3 {
                0 => {
                    let _ = writeln!(
                        out,
                        "      - kit/do-{}: {{target: << parameters.os >>-{step}}}",
                        (n + step) % 20
                    );
                }
                1 => {
                    let _ = writeln!(out, "      - run: echo << parameters.version >> {step} of {n}");
                }
                _ => {
                    let _ = writeln!(out, "      - kit/do-{}", (n * 7 + step) % 20);
                }
            }
        }
    }
    out.push_str("\nworkflows:\n  main:\n    jobs:\n");
    let list = |prefix: &str, count: usize| {
        (0..count).map(|n| format!("{prefix}{n}")).collect::<Vec<_>>().join(", ")
    };
    let _ = write!(
        out,
        "      - job-0:\n          matrix:\n            parameters:\n              os: [{}]\n              version: [{}]\n              shard: [1, 2, 3, 4, 5]\n",
        list("os", 10),
        list("v", 10)
    );
    for n in 1..320 {
        if n % 4 == 0 {
            let _ = writeln!(out, "      - job-{n}:\n          requires: [job-{}, job-{}]", n - 1, n - 2);
        } else {
            let _ = writeln!(out, "      - job-{n}");
        }
    }
    out
}

/// A configuration of about 300 lines as a project of some size has it: executors, commands with arguments,
/// caches, a matrix, filters and comments.
pub fn typical() -> String {
    let mut out = String::from(
        "version: 2.1\n\n# Built for every push; deployed from main.\nparameters:\n  deploy:\n    type: boolean\n    default: false\n\nexecutors:\n  node:\n    parameters:\n      tag:\n        type: string\n        default: \"20.11\"\n    docker:\n      - image: cimg/node:<< parameters.tag >>\n    resource_class: medium\n    working_directory: ~/app\n\ncommands:\n  install:\n    description: Dependencies, from the cache where the lock file has not changed\n    parameters:\n      folder:\n        type: string\n        default: .\n    steps:\n      - restore_cache:\n          keys:\n            - v1-{{ checksum \"package-lock.json\" }}\n            - v1-\n      - run:\n          name: Install in << parameters.folder >>\n          command: npm ci\n          working_directory: << parameters.folder >>\n      - save_cache:\n          key: v1-{{ checksum \"package-lock.json\" }}\n          paths:\n            - ~/.npm\n  report:\n    steps:\n      - store_test_results:\n          path: reports\n      - store_artifacts:\n          path: reports\n          destination: reports\n\njobs:\n",
    );
    for n in 0..9 {
        let _ = write!(
            out,
            "  # Part {n}\n  part-{n}:\n    parameters:\n      version:\n        type: string\n        default: \"20.11\"\n    executor:\n      name: node\n      tag: << parameters.version >>\n    environment:\n      NODE_ENV: test\n      PART: \"{n}\"\n    steps:\n      - checkout\n      - install:\n          folder: packages/p{n}\n      - run:\n          name: Test\n          command: |\n            npm run lint\n            npm test -- --part {n}\n      - report\n"
        );
    }
    out.push_str(
        "  ship:\n    machine: true\n    steps:\n      - checkout\n      - run: ./deploy.sh\n\nworkflows:\n  check:\n    jobs:\n      - part-0:\n          matrix:\n            parameters:\n              version: [\"18.19\", \"20.11\", \"21.6\"]\n",
    );
    for n in 1..9 {
        let _ = write!(
            out,
            "      - part-{n}:\n          context: shared\n          requires:\n            - part-0\n"
        );
    }
    out.push_str(
        "      - approve:\n          type: approval\n          requires: [part-1, part-2, part-3]\n          filters:\n            branches:\n              only: main\n      - ship:\n          requires: [approve]\n          filters:\n            branches:\n              only: [main, /release-.*/]\n",
    );
    out
}
