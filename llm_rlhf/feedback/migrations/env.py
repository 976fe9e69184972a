"""Run by alembic: the migrations of a store, on the connection that `Database` holds, in its one transaction."""

from alembic import context

from llm_rlhf.feedback.tables import Table

if getattr(context, "config", None) is not None:  # else it was only imported
    context.configure(
        connection=context.config.attributes["connection"],
        target_metadata=Table.metadata,
        render_as_batch=True,  # SQLite alters no table in place
        transactional_ddl=False,  # the transaction is the caller's
    )
    context.run_migrations()
