"""Raw logs -> atomic files: `recbole-cdsr prepare SOURCE`, one module per source.

    files -> logs (batches of columns) -> collect (Events: numbers behind vocabularies) -> arrange (domains, order,
    repeats, filters) -> write (<name>.inter, <name>.item, prepared.json) -> summary

A reader is a function from files to Events; everything after that is shared. This file imports nothing: the command
line reads it for its help.
"""

SOURCES = {
    "csv": "any csv, tsv or parquet files with named columns",
    "amazon": "Amazon Reviews of 2014, 2018 or 2023: one file per category, one category one domain",
    "kuairand": "KuaiRand logs; the domain is a column of the videos (music_type) or of the log (tab)",
    "douban": "Douban's reviews of films, books and music",
}
