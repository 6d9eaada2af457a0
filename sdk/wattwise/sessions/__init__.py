"""Saved conversations: their texts, and the KV rows that let them go on without reading those texts again.

    sessions/                   paths.data_dir()/sessions
      lock                      held while anything below changes
      rows/<sha256>             exported rows and attention sums, by content; several sessions may share them
      <id>/conversation.json    the text (record.py): enough to go on, whatever happened to the rows
      <id>/rows.index           which tokens the rows are of, and in which files they lie (index.py)
      <id>/lock                 held by the process that has the conversation open

lock.py the locks; blobs.py files by content; content.py and fingerprint.py what rows belong to; library.py the folder
as a whole; room.py its byte cap; prefixes.py finds rows for a prompt; rows.py moves rows between one model and the
library; open_session.py one conversation while it goes on; export.py for people. Rows are only ever a shortcut:
whatever is wrong with them is an event, and the text is read again.
"""
