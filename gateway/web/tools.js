// @ts-check
/** Tools that the page runs for an agent (AG-UI client tools). */

/** As AG-UI declares them; they go out with every message. */
export const TOOLS = [
  {
    name: "get_local_time",
    description: "The date, time and time zone where the user is.",
    parameters: { type: "object", properties: {} },
  },
];

/**
 * The result of a tool, or why there is none.
 * @param {string} name
 * @returns {{content: string, error?: string}}
 */
export function runTool(name) {
  if (name === "get_local_time") {
    const now = new Date();
    const timeZone = Intl.DateTimeFormat().resolvedOptions().timeZone;
    return { content: JSON.stringify({ local: now.toString(), iso: now.toISOString(), timeZone }) };
  }
  const error = `this page has no tool ${JSON.stringify(name)}`;
  return { content: error, error };
}
