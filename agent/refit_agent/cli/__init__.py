"""The command line, `refit-agent`.

    main ──► stop (signals) ──► path_command            the fast lane: no click
      │                    └──► group (click) ──► one module per group of commands, imported when invoked
      └──► output (documents, errors, exit codes)

Light modules, part of the fast lane: main, stop, ensure, output, path_command.
"""
