/* What grafana/dashboard.json has to be: Grafana's own types, with nothing that they do not know.

   The types are of enums, JSON is of their values; and where Grafana leaves open what is in a panel,
   it is the options of its kind, and queries to Prometheus. */

import type {
  AnnotationQuery, Dashboard, DataQuery, FieldConfig, Panel, RowPanel,
} from "@grafana/schema";
import type * as bargauge from "@grafana/schema/dist/esm/raw/composable/bargauge/panelcfg/x/BarGaugePanelCfg_types.gen";
import type * as heatmap from "@grafana/schema/dist/esm/raw/composable/heatmap/panelcfg/x/HeatmapPanelCfg_types.gen";
import type * as stat from "@grafana/schema/dist/esm/raw/composable/stat/panelcfg/x/StatPanelCfg_types.gen";
import type * as statetimeline from "@grafana/schema/dist/esm/raw/composable/statetimeline/panelcfg/x/StateTimelinePanelCfg_types.gen";
import type * as table from "@grafana/schema/dist/esm/raw/composable/table/panelcfg/x/TablePanelCfg_types.gen";
import type * as timeseries from "@grafana/schema/dist/esm/raw/composable/timeseries/panelcfg/x/TimeSeriesPanelCfg_types.gen";

type Json<T> = T extends string
  ? `${T}`
  : T extends (infer U)[]
    ? Json<U>[]
    : T extends object
      ? { [K in keyof T]: Json<T[K]> }
      : T;

/* Of the Prometheus data source, whose types are not in the package. */
interface Query extends DataQuery {
  expr: string;
  legendFormat: string;
  instant: boolean;
  range: boolean;
  editorMode: "code" | "builder";
  format?: "time_series" | "table" | "heatmap";
}

interface PrometheusAnnotation extends AnnotationQuery {
  expr: string;
  step: string;
  tagKeys: string;
  titleFormat: string;
  textFormat: string;
  useValueForTime: boolean;
}

type PanelOf<Kind, Options, Custom> = Json<Omit<Panel, "type" | "options" | "fieldConfig" | "targets">> & {
  type: Kind;
  title: string;
  description: string;
  options: Json<Options>;
  fieldConfig: {
    defaults: Json<Omit<FieldConfig, "custom">> & { custom?: Json<Custom> };
    overrides: { matcher: { id: string; options: string }; properties: { id: string; value: unknown }[] }[];
  };
  targets: Json<Query>[];
};

export type GatewayDashboard = Json<Omit<Dashboard, "annotations" | "panels">> & {
  annotations: { list: (Json<PrometheusAnnotation> | Json<AnnotationQuery & { builtIn: 1 }>)[] };
  panels: (
    | Json<RowPanel>
    | PanelOf<"bargauge", bargauge.Options, never>
    | PanelOf<"heatmap", heatmap.Options, heatmap.FieldConfig>
    | PanelOf<"stat", stat.Options, never>
    | PanelOf<"state-timeline", statetimeline.Options, statetimeline.FieldConfig>
    | PanelOf<"table", table.Options, Partial<table.FieldConfig>>
    | PanelOf<"timeseries", timeseries.Options, timeseries.FieldConfig>
  )[];
};
