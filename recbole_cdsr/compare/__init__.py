"""Many models x data sets x seeds: `recbole-cdsr compare`.

plan: what is to be trained.  cells: training it, each cell in a process and a folder of its own.
records: what finished runs say.  significance, transfer: tests and intervals on events.
tables: numbers to tables.  formats: tables to files.  command: the command line.
"""
